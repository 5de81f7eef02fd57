// The Linux witness: rewrites an arena at a set rate, keeps checking it, and reports on the second
// serial port. Static, started by init, alone in its machine.
//
// Each byte of a report leaves by a port access of this process (no tty, no kernel buffer), so that
// the control page in RAM tells exactly how far the console is; see witness_layout.h.
//
// Parameters are words of the kernel's command line:
//   witness.arena_mib=64          witness.pages_per_s=1000 witness.pattern=uniform|hot|sequential
//   witness.hot_percent=90        witness.hot_set_percent=10    witness.rewrite_same_percent=0
//   witness.content=real|compressible|random                    witness.change_bytes=512 (0: all)
//   witness.report_ms=20          witness.verify_percent=10 (share of a processor spent on checks)
//   witness.disks=0 (/dev/vda, …) witness.disk_slots=64         witness.disk_writes_per_s=200
#include <fcntl.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "guest/disk_records.h"
#include "guest/linux/arena.h"
#include "guest/witness_layout.h"

namespace {

using namespace vmshadow::witness;

constexpr unsigned short kSerial = 0x2f8;
constexpr std::int64_t kSliceNs = 5'000'000;
/// After a stop of the machine, at most this much is caught up on.
constexpr std::int64_t kCatchUpNsMax = 100'000'000;

[[noreturn, gnu::format(printf, 1, 2)]] void give_up(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("witness: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  std::exit(1);
}

struct Parameters {
  std::uint64_t arena_mib = 64;
  std::uint64_t pages_per_s = 1000;
  PageChooser::Options choice;
  std::uint64_t rewrite_same_percent = 0;
  Content content = Content::real;
  std::uint64_t change_bytes = 512;
  std::uint64_t report_ms = 20;
  std::uint64_t verify_percent = 10;
  std::uint64_t disks = 0;
  std::uint64_t disk_slots = 64;
  std::uint64_t disk_writes_per_s = 200;
};

std::uint64_t number(std::string_view key, std::string_view text, std::uint64_t max) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), value);
  if (error != std::errc{} || end != text.end() || value > max) {
    give_up("%.*s=%.*s is not a number up to %llu", static_cast<int>(key.size()), key.data(),
            static_cast<int>(text.size()), text.data(), static_cast<unsigned long long>(max));
  }
  return value;
}

void take_parameter(Parameters& p, std::string_view key, std::string_view value) {
  const auto percent = [&] { return number(key, value, 100); };
  if (key == "arena_mib")
    p.arena_mib = number(key, value, 1U << 20);
  else if (key == "pages_per_s")
    p.pages_per_s = number(key, value, 100'000'000);
  else if (key == "hot_percent")
    p.choice.hot_percent = static_cast<unsigned>(percent());
  else if (key == "hot_set_percent")
    p.choice.hot_set_percent = static_cast<unsigned>(percent());
  else if (key == "rewrite_same_percent")
    p.rewrite_same_percent = percent();
  else if (key == "change_bytes")
    p.change_bytes = number(key, value, kPage);
  else if (key == "report_ms")
    p.report_ms = number(key, value, 60'000);
  else if (key == "disks")
    p.disks = number(key, value, kDisksMax);
  else if (key == "disk_slots")
    p.disk_slots = number(key, value, 1U << 20);
  else if (key == "disk_writes_per_s")
    p.disk_writes_per_s = number(key, value, 1'000'000);
  else if (key == "verify_percent")
    p.verify_percent = percent();
  else if (key == "pattern" && pattern_named(value))
    p.choice.pattern = *pattern_named(value);
  else if (key == "content" && content_named(value))
    p.content = *content_named(value);
  else
    give_up("cannot use witness.%.*s=%.*s", static_cast<int>(key.size()), key.data(),
            static_cast<int>(value.size()), value.data());
}

Parameters read_parameters() {
  char text[4096];
  const int fd = ::open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  const ssize_t got = fd >= 0 ? ::read(fd, text, sizeof text) : -1;
  if (got < 0) give_up("cannot read /proc/cmdline: mount /proc first");
  ::close(fd);
  Parameters parameters;
  std::string_view rest(text, static_cast<std::size_t>(got));
  constexpr std::string_view kPrefix = "witness.";
  while (!rest.empty()) {
    const std::size_t end = rest.find_first_of(" \n");
    std::string_view word = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (word.substr(0, kPrefix.size()) != kPrefix) continue;
    word.remove_prefix(kPrefix.size());
    const std::size_t equals = word.find('=');
    if (equals == std::string_view::npos) give_up("a witness parameter needs '=' and a value");
    take_parameter(parameters, word.substr(0, equals), word.substr(equals + 1));
  }
  if (parameters.arena_mib == 0) give_up("arena_mib must be at least 1");
  if (parameters.report_ms == 0) parameters.report_ms = 1;
  if (parameters.disk_slots == 0 || parameters.disk_writes_per_s == 0) {
    give_up("disk_slots and disk_writes_per_s must be at least 1");
  }
  return parameters;
}

void* map_memory(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) give_up("cannot have %zu bytes of memory: lower arena_mib", bytes);
  return memory;
}

void open_serial() {
  if (::ioperm(kSerial, 8, 1) != 0) give_up("no right to use the second serial port");
  outb(0, kSerial + 1);  // no interrupts
  outb(3, kSerial + 3);  // 8 bits, no parity
  outb(0, kSerial + 2);  // no FIFO
  outb(3, kSerial + 4);
  if (inb(kSerial + 5) == 0xff) give_up("there is no second serial port: give QEMU two -serial");
}

void put_serial(char byte) {
  while ((inb(kSerial + 5) & 0x20) == 0) {
  }
  outb(static_cast<unsigned char>(byte), kSerial);
}

std::int64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void sleep_ns(std::int64_t ns) {
  if (ns <= 0) return;
  const timespec t{ns / 1'000'000'000, ns % 1'000'000'000};
  ::nanosleep(&t, nullptr);
}

/// Writes to one disk for ever; see disk_records.h.
class DiskWriter {
 public:
  DiskWriter(const Parameters& p, ControlPage& control, std::uint64_t index)
      : counts_(control.disks[index]),
        control_(control),
        slot_(static_cast<DiskSector*>(map_memory(kSlotBytes))),
        every_ns_(1'000'000'000 / static_cast<std::int64_t>(p.disk_writes_per_s)) {
    const char path[] = {'/', 'd', 'e', 'v', '/', 'v', 'd', static_cast<char>('a' + index), 0};
    fd_ = ::open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd_ < 0) give_up("cannot open %s", path);
    std::memcpy(&nonce_, control.nonce, sizeof nonce_);
    counts_.slots = p.disk_slots;
  }

  [[noreturn]] void run() {
    for (std::int64_t next = now_ns();; sleep_ns(next - now_ns())) {
      write_one();
      next = std::max(next + every_ns_, now_ns() - kCatchUpNsMax);
    }
  }

 private:
  void write_one() {
    const std::uint64_t record = counts_.acknowledged + 1;
    const std::uint64_t slot = record % counts_.slots;
    const auto offset = static_cast<off_t>(slot * kSlotBytes);
    if (::pread(fd_, slot_, kSlotBytes, offset) != kSlotBytes) give_up("cannot read a disk");
    for (std::uint32_t i = 0; i < kSlotSectors; ++i) {
      if (record_in(slot_[i], nonce_, i) == record_of_sector(record - 1, counts_.slots, slot, i)) {
        continue;
      }
      __atomic_add_fetch(&control_.bad, 1, __ATOMIC_RELAXED);
    }
    const std::uint32_t first = record_first(record);
    const std::uint32_t end = record_end(record);
    for (std::uint32_t i = first; i < end; ++i) compose_sector(slot_[i], record, nonce_, i);
    __atomic_store_n(&counts_.issued, record, __ATOMIC_SEQ_CST);
    const std::size_t bytes = (end - first) * kSectorBytes;
    if (::pwrite(fd_, slot_ + first, bytes, offset + static_cast<off_t>(first * kSectorBytes)) !=
            static_cast<ssize_t>(bytes) ||
        ::fdatasync(fd_) != 0) {
      give_up("cannot write to a disk");
    }
    __atomic_store_n(&counts_.acknowledged, record, __ATOMIC_SEQ_CST);
  }

  DiskCounts& counts_;
  ControlPage& control_;
  DiskSector* const slot_;
  const std::int64_t every_ns_;
  std::uint32_t nonce_ = 0;
  int fd_ = -1;
};

class Witness {
 public:
  explicit Witness(const Parameters& p)
      : parameters_(p),
        control_(*static_cast<ControlPage*>(map_memory(sizeof(ControlPage)))),
        pages_{static_cast<ArenaPage*>(map_memory(p.arena_mib << 20)), (p.arena_mib << 20) / kPage},
        table_{static_cast<std::uint32_t*>(map_memory(pages_.size() * sizeof(std::uint32_t))),
               pages_.size()},
        arena_(pages_, table_, draw_nonce(), p.content, p.change_bytes),
        chooser_(p.choice, pages_.size()),
        random_(*reinterpret_cast<const std::uint64_t*>(control_.nonce)) {
    for (std::uint64_t i = 0; i < p.disks; ++i) disks_.emplace_back(p, control_, i);
    announce();
  }

  [[noreturn]] void run() {
    for (DiskWriter& disk : disks_) std::thread([&disk] { disk.run(); }).detach();
    std::int64_t last = now_ns();
    std::int64_t report_at = last;
    std::uint64_t owed = 0;  // writes, in units of one billionth
    for (;;) {
      const std::int64_t start = now_ns();
      owed += static_cast<std::uint64_t>(
                  std::min(std::max<std::int64_t>(start - last, 0), kCatchUpNsMax)) *
              parameters_.pages_per_s;
      last = start;
      for (; owed >= 1'000'000'000; owed -= 1'000'000'000) {
        write_one();
        // Slower than asked: reports go on, what is owed is dropped.
        if (now_ns_if_due() - start > kCatchUpNsMax) owed = 0;
        if (owed == 0) break;
      }
      verify_for(kSliceNs * static_cast<std::int64_t>(parameters_.verify_percent) / 100);
      if (now_ns() >= report_at) {
        print_report(control_, put_serial);
        report_at += static_cast<std::int64_t>(parameters_.report_ms) * 1'000'000;
        // A machine that stood still does not report the past.
        if (now_ns() - report_at > kCatchUpNsMax || report_at - now_ns() > 60'000'000'000)
          report_at = now_ns();
      }
      sleep_ns(std::min(start + kSliceNs, report_at) - now_ns());
    }
  }

 private:
  std::span<const std::uint8_t> draw_nonce() {
    if (::getrandom(control_.nonce, sizeof control_.nonce, 0) != sizeof control_.nonce) {
      give_up("the kernel gives no random bytes");
    }
    return control_.nonce;
  }

  void announce() {
    arena_.fill(control_.writes, random_);
    control_.version = kVersion;
    control_.kind = kKindLinux;
    control_.arena_address = reinterpret_cast<std::uintptr_t>(pages_.data());
    control_.arena_pages = pages_.size();
    control_.table_address = reinterpret_cast<std::uintptr_t>(table_.data());
    control_.line_bytes = kLineBytes;
    control_.first_bad_page = kNoPage;
    control_.line = 1;
    std::memcpy(control_.magic, kMagic, sizeof control_.magic);
    control_.constants_check = constants_check(control_);
    control_.started = 1;
  }

  // The clock, looked at once in 64 writes: it is dear under emulation.
  std::int64_t now_ns_if_due() {
    if (++since_clock_ % 64 == 0) clock_ = now_ns();
    return clock_;
  }

  void write_one() {
    const std::uint64_t index = chooser_.next(random_);
    if (parameters_.rewrite_same_percent != 0 &&
        random_.below(100) < parameters_.rewrite_same_percent) {
      arena_.rewrite_same(index);
      return;
    }
    arena_.write(index, control_.writes + 1, random_);
    ++control_.writes;
  }

  void verify_for(std::int64_t budget_ns) {
    if (budget_ns == 0) return;
    const std::int64_t until = now_ns() + budget_ns;
    do {
      for (int i = 0; i < 16; ++i) {
        if (!arena_.is_whole(next_verify_)) {
          if (control_.bad == 0) control_.first_bad_page = next_verify_;
          __atomic_add_fetch(&control_.bad, 1, __ATOMIC_RELAXED);
        }
        if (++next_verify_ == arena_.pages()) next_verify_ = 0;
        ++control_.verified;
      }
    } while (now_ns() < until);
  }

  Parameters parameters_;
  ControlPage& control_;
  std::span<ArenaPage> pages_;
  std::span<std::uint32_t> table_;
  Arena arena_;
  PageChooser chooser_;
  Random random_;
  std::vector<DiskWriter> disks_;
  std::uint64_t next_verify_ = 0;
  std::uint64_t since_clock_ = 0;
  std::int64_t clock_ = 0;
};

}  // namespace

int main() {
  const Parameters parameters = read_parameters();
  open_serial();
  ::mlockall(MCL_CURRENT | MCL_FUTURE);
  Witness witness(parameters);
  witness.run();
}
