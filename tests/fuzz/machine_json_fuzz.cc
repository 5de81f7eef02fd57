// A stored machine description, from its JSON to the command that would be started: whatever the
// text, it is refused or gives a command that ends with our own monitor.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "replay/machine_record.h"
#include "replay/qemu_command.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmshadow;
  const auto record =
      replay::parse_machine_record(std::string(reinterpret_cast<const char*>(data), size));
  if (!record) {
    VMSHADOW_ASSERT(record.error().code == Errc::corrupt);
    return 0;
  }
  const auto command = replay::command_for_restore(*record, {}, "/run/qmp.sock");
  if (!command) {
    VMSHADOW_ASSERT(!command.error().message.empty());
    return 0;
  }
  VMSHADOW_ASSERT(command->argv.size() >= 5 && command->argv.back() == "defer");
  VMSHADOW_ASSERT(command->argv.size() <= record->argv.size() + 4);
  VMSHADOW_ASSERT(!replay::shell_text(*command).empty());
  return 0;
}
