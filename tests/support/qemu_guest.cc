#include "support/qemu_guest.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <linux/kvm.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/assert.h"

namespace vmshadow::test {
namespace {

constexpr std::uint64_t kTcgFastPathKib = 256;
constexpr std::string_view kWitnessFile = "opt/vmshadow/witness";

// Where the build left the guests; a test run from elsewhere sets the variable.
std::string guest_file(const std::string& name) {
  const char* directory = std::getenv("VMSHADOW_GUEST_DIR");
  return std::string(directory != nullptr ? directory : VMSHADOW_GUEST_BUILD_DIR) + "/" + name;
}

// The newest file of a pattern (versions sort well enough by name), or "".
std::string newest(const char* pattern) {
  glob_t found{};
  std::string path;
  if (::glob(pattern, 0, nullptr, &found) == 0) path = found.gl_pathv[found.gl_pathc - 1];
  ::globfree(&found);
  return path;
}
std::string kernel_path() {
  const char* path = std::getenv("VMSHADOW_GUEST_KERNEL");
  return path != nullptr ? path : newest("/boot/vmlinuz-*-cloud-amd64");
}
std::string foreign_initrd_path() { return newest("/boot/initrd.img-*-cloud-amd64"); }

bool is_readable(const std::string& path) { return ::access(path.c_str(), R_OK) == 0; }

Status kvm_usable() {
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm && errno == ENOENT) return fail(Errc::unsupported, "this machine has no /dev/kvm");
  if (!kvm) return fail_errno(errno, "opening /dev/kvm (load the module, join group kvm)");
  const UniqueFd vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!vm) return fail_errno(errno, "creating a KVM machine");
  return {};
}

// An emulating or paravirtual /dev/kvm exists without them; it does not run a Linux kernel.
bool processor_virtualizes() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 5, "flags") == 0) {
      line += ' ';
      return line.find(" vmx ") != std::string::npos || line.find(" svm ") != std::string::npos;
    }
  }
  return false;
}

// Enters command mode on a monitor and leaves again.
Status ask_monitor(const std::string& path, io::Deadline deadline) {
  VMSHADOW_ASSIGN(const UniqueFd monitor, io::connect_unix(path, deadline));
  constexpr std::string_view kCommand = "{\"execute\": \"qmp_capabilities\"}\n";
  VMSHADOW_TRY(io::write_all(monitor.get(), std::as_bytes(std::span(kCommand)), deadline));
  std::string said;
  while (said.find("\"return\"") == std::string::npos) {
    std::array<char, 4096> buffer;
    VMSHADOW_ASSIGN(
        const std::size_t got,
        io::read_some(monitor.get(), std::as_writable_bytes(std::span(buffer)), deadline));
    if (got == 0) return fail(Errc::closed, "the monitor closed the connection");
    said.append(buffer.data(), got);
  }
  return {};
}

std::string join(const std::vector<std::string>& words, std::string_view prefix) {
  std::string text;
  for (const auto& word : words) {
    if (!text.empty()) text += ' ';
    text += prefix;
    text += word;
  }
  return text;
}

}  // namespace

Accelerator choose_accelerator(const GuestConfig& config) {
  if (config.accelerator != Accelerator::automatic) return config.accelerator;
  if (!kvm_usable()) return Accelerator::tcg;
  return config.kind == GuestKind::bare || processor_virtualizes() ? Accelerator::kvm
                                                                   : Accelerator::tcg;
}

std::uint64_t guest_memory_kib(const GuestConfig& config) {
  std::uint64_t mib = config.memory_mib;
  if (mib == 0) {
    mib = config.kind == GuestKind::bare ? 64 : config.kind == GuestKind::linux_kernel ? 256 : 384;
  }
  const std::uint64_t kib = mib * 1024;
  const bool avoid = !config.exact_memory && choose_accelerator(config) == Accelerator::tcg;
  return avoid && kib % kTcgFastPathKib == 0 ? kib - 8 : kib;
}

std::string tcg_shim_path() { return guest_file("libtcg_shim.so"); }

Status guest_available(const GuestConfig& config) {
  const auto missing = [](const std::string& what, const std::string& remedy) {
    return fail(Errc::not_found, fmt::format("{} is missing: {}", what, remedy));
  };
  if (!in_path(config.qemu)) return missing(config.qemu, "install qemu-system-x86");
  if (config.accelerator == Accelerator::kvm) {
    VMSHADOW_TRY(kvm_usable());
    if (config.kind != GuestKind::bare && !processor_virtualizes()) {
      return fail(Errc::unsupported, "this processor offers neither vmx nor svm for a Linux guest");
    }
  }
  std::vector<std::string> files;
  if (config.kind == GuestKind::bare) files = {guest_file("bare-guest.rom")};
  if (config.kind == GuestKind::linux_kernel) files = {guest_file("guest-initramfs.gz")};
  if (choose_accelerator(config) == Accelerator::tcg) files.push_back(tcg_shim_path());
  for (const auto& file : files) {
    if (!is_readable(file)) {
      return missing(file,
                     "build it (a Linux guest needs linux-image-cloud-amd64, busybox-static "
                     "and cpio when meson is set up)");
    }
  }
  if (config.kind != GuestKind::bare && !is_readable(kernel_path())) {
    return missing("a readable /boot/vmlinuz-*-cloud-amd64", "install linux-image-cloud-amd64");
  }
  if (config.kind == GuestKind::foreign && !is_readable(foreign_initrd_path())) {
    return missing("a readable /boot/initrd.img-*-cloud-amd64",
                   "install initramfs-tools and run update-initramfs");
  }
  return {};
}

Status QemuGuest::open_consoles(const GuestConfig& config) {
  if (config.kind != GuestKind::foreign) {
    VMSHADOW_ASSIGN(witness_owned_, Console::listen(directory_.file("witness")));
    witness_ = console_ = witness_owned_.get();
  }
  if (config.kind != GuestKind::bare) {
    VMSHADOW_ASSIGN(console_owned_, Console::listen(directory_.file("console")));
    console_ = console_owned_.get();
  }
  return {};
}

void QemuGuest::compose_command(const GuestConfig& config) {
  argv_ = {config.qemu,
           "-nodefaults",
           "-display",
           "none",
           "-no-reboot",
           "-accel",
           accelerator_ == Accelerator::kvm ? "kvm" : "tcg",
           "-m",
           fmt::format("{}k", guest_memory_kib(config))};
  const auto add = [&](std::initializer_list<std::string> words) {
    argv_.insert(argv_.end(), words);
  };
  for (const auto& [id, path] :
       {std::pair{"qmp", qmp_path_}, std::pair{"observer", observer_path_}}) {
    add({"-chardev", fmt::format("socket,id={},path={},server=on,wait=off", id, path), "-mon",
         fmt::format("chardev={},mode=control", id)});
  }
  if (console_owned_)
    add({"-chardev", console_owned_->chardev("console"), "-serial", "chardev:console"});
  if (witness_owned_)
    add({"-chardev", witness_owned_->chardev("witness"), "-serial", "chardev:witness"});
  switch (config.kind) {
    case GuestKind::bare:
      add({"-bios", guest_file("bare-guest.rom")});
      if (!config.witness.empty()) {
        add({"-fw_cfg", fmt::format("name={},string={}", kWitnessFile, join(config.witness, ""))});
      }
      break;
    case GuestKind::linux_kernel:
      add({"-kernel", kernel_path(), "-initrd", guest_file("guest-initramfs.gz"), "-append",
           "console=ttyS0 quiet panic=-1 " + join(config.witness, "witness.")});
      break;
    case GuestKind::foreign:
      add({"-kernel", kernel_path(), "-initrd", foreign_initrd_path(), "-append",
           "console=ttyS0 quiet break=premount", "-netdev", "user,id=n0,restrict=on", "-device",
           "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
           "-device", "piix3-usb-uhci,id=usb", "-device", "usb-tablet,bus=usb.0"});
      break;
  }
  if (config.incoming) add({"-incoming", "defer"});
  argv_.insert(argv_.end(), config.extra_args.begin(), config.extra_args.end());
  if (accelerator_ == Accelerator::tcg) env_ = {"LD_PRELOAD=" + tcg_shim_path()};
}

Result<std::unique_ptr<QemuGuest>> QemuGuest::start(const GuestConfig& config) {
  VMSHADOW_TRY(guest_available(config));
  std::unique_ptr<QemuGuest> guest(new QemuGuest);
  guest->kind_ = config.kind;
  guest->accelerator_ = choose_accelerator(config);
  guest->qmp_path_ = guest->directory_.file("qmp");
  guest->observer_path_ = guest->directory_.file("observer");
  VMSHADOW_TRY(guest->open_consoles(config));
  guest->compose_command(config);
  ProcessOptions options;
  options.argv = guest->argv_;
  options.env = guest->env_;
  options.stdout_file = options.stderr_file = guest->directory_.file("messages");
  VMSHADOW_ASSIGN(auto process, Process::spawn(options));
  guest->process_.emplace(std::move(process));
  if (auto up = guest->wait_for_monitors(io::deadline_after(std::chrono::seconds(20))); !up) {
    return fail(guest->with_messages(std::move(up).error()));
  }
  return guest;
}

// QEMU opens its sockets, and its monitors' thread greets, before it makes its devices; a command
// is answered by the main loop, once all of that went well. The first monitor is left alone: it
// serves one client, and that must be the caller.
Status QemuGuest::wait_for_monitors(io::Deadline deadline) {
  for (;;) {
    const auto answered = ask_monitor(observer_path_, deadline);
    if (answered) return {};
    if (answered.error().code == Errc::timed_out || std::chrono::steady_clock::now() >= deadline) {
      return fail(Errc::timed_out, "QEMU does not answer on its monitor");
    }
    // Its sockets are closed a moment before it has ended.
    ::poll(nullptr, 0, 2);
    if (!process_->running()) return fail(Errc::closed, "QEMU ended at its start");
  }
}

std::string QemuGuest::messages() const {
  std::ifstream file(directory_.file("messages"));
  return {std::istreambuf_iterator<char>(file), {}};
}

Error QemuGuest::with_messages(Error error) const {
  if (const std::string said = messages(); !said.empty()) {
    error.message += fmt::format("; QEMU said:\n{}", said);
  }
  return error;
}

Status QemuGuest::wait_for_reports(std::size_t count, io::Deadline deadline) {
  VMSHADOW_ASSERT(witness_ != nullptr);
  if (auto seen = witness_->wait_for_lines(count, deadline); !seen) {
    Error error = std::move(seen).error().with_context("waiting for the witness");
    if (console_ != witness_) error.message += "\nconsole:\n" + console_->raw();
    return fail(with_messages(std::move(error)));
  }
  return {};
}

Result<std::vector<WitnessReport>> QemuGuest::reports() const {
  return parse_witness_reports(witness_->lines());
}

Status QemuGuest::wait_for_shell(io::Deadline deadline) {
  const std::string_view prompt = kind_ == GuestKind::foreign ? "(initramfs)" : "/ #";
  if (auto at = console_->wait_for(prompt, 0, deadline); !at) {
    return fail(with_messages(std::move(at).error().with_context("waiting for the guest's shell")));
  }
  return {};
}

}  // namespace vmshadow::test
