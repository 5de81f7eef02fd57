#include "replay/machine_record.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <vmshadow/machine.h>

namespace vmshadow::replay {
namespace {

using Json = nlohmann::json;

tl::unexpected<Error> malformed(std::string_view what) {
  return fail(Errc::corrupt, fmt::format("the recorded machine description {}", what));
}

/// A string that can be handed to another program: no NUL in it.
bool is_argument(const Json& value) {
  return value.is_string() && value.get_ref<const std::string&>().find('\0') == std::string::npos;
}

Status read_text(const Json& object, const char* key, std::string& into) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  if (!is_argument(*found)) return malformed(fmt::format("has a '{}' that is not text", key));
  into = found->get_ref<const std::string&>();
  return {};
}

Status read_argv(const Json& object, std::vector<std::string>& into) {
  const auto found = object.find("argv");
  if (found == object.end() || found->is_null()) return {};
  if (!found->is_array() || found->size() > kArgumentsMax) {
    return malformed("has an 'argv' that is not a list of arguments");
  }
  for (const Json& argument : *found) {
    if (!is_argument(argument)) return malformed("has an 'argv' with an entry that is not text");
    into.push_back(argument.get_ref<const std::string&>());
  }
  return {};
}

Status read_disks(const Json& object, std::vector<MachineRecord::Disk>& into) {
  const auto found = object.find("disks");
  if (found == object.end() || found->is_null()) return {};
  if (!found->is_array() || found->size() > kBlocksMax) {
    return malformed("has 'disks' that are not a list of disks");
  }
  for (const Json& entry : *found) {
    if (!entry.is_object()) return malformed("has 'disks' with an entry that is none");
    MachineRecord::Disk& disk = into.emplace_back();
    VMSHADOW_TRY(read_text(entry, "name", disk.name));
    VMSHADOW_TRY(read_text(entry, "format", disk.format));
    VMSHADOW_TRY(read_text(entry, "file", disk.file));
  }
  return {};
}

}  // namespace

Result<MachineRecord> parse_machine_record(const std::string& json_text) {
  if (json_text.size() > kMachineTextBytesMax) return malformed("is too long");
  const Json object = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) return malformed("is not a JSON object");
  MachineRecord record;
  VMSHADOW_TRY(read_text(object, "qemu_binary", record.qemu_binary));
  VMSHADOW_TRY(read_text(object, "qemu_version", record.qemu_version));
  VMSHADOW_TRY(read_text(object, "machine_type", record.machine_type));
  VMSHADOW_TRY(read_text(object, "accelerator", record.accelerator));
  VMSHADOW_TRY(read_text(object, "cwd", record.cwd));
  VMSHADOW_TRY(read_text(object, "uuid", record.uuid));
  VMSHADOW_TRY(read_text(object, "name", record.name));
  VMSHADOW_TRY(read_argv(object, record.argv));
  VMSHADOW_TRY(read_disks(object, record.disks));
  if (const auto ram = object.find("ram_bytes"); ram != object.end() && !ram->is_null()) {
    if (!ram->is_number_unsigned()) return malformed("has a 'ram_bytes' that is not a byte count");
    record.ram_bytes = ram->get<std::uint64_t>();
  }
  return record;
}

}  // namespace vmshadow::replay
