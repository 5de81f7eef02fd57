#include "guest/bare/hardware.h"

namespace bare {
namespace {

constexpr uint16_t kSerial = 0x3f8;
constexpr uint16_t kFwCfgSelector = 0x510;
constexpr uint16_t kFwCfgData = 0x511;
constexpr uint8_t kTransmitterEmpty = 0x20;

struct Gate {
  uint16_t offset_low, selector, flags, offset_high;
};
constexpr int kTimerVector = 0x20;
constexpr int kSpuriousVector = 0x27;
Gate idt[kSpuriousVector + 1];

void set_gate(int vector, void (*handler)()) {
  const auto address = reinterpret_cast<uint32_t>(handler);
  idt[vector] =
      Gate{static_cast<uint16_t>(address), 8, 0x8e00, static_cast<uint16_t>(address >> 16)};
}

struct [[gnu::packed]] TableRegister {
  uint16_t limit;
  uint32_t base;
};

struct FwCfgFile {
  uint32_t bytes_be;
  uint16_t key_be;
  uint16_t reserved;
  char name[56];
};

bool same_text(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

void read_data(void* into, uint32_t bytes) {
  auto* at = static_cast<uint8_t*>(into);
  for (uint32_t i = 0; i < bytes; ++i) at[i] = in8(kFwCfgData);
}

}  // namespace

void start_serial() {
  out8(kSerial + 1, 0);     // no interrupts
  out8(kSerial + 3, 0x80);  // divisor latch
  out8(kSerial + 0, 1);     // 115200 baud
  out8(kSerial + 1, 0);
  out8(kSerial + 3, 3);  // 8 bits, no parity
  out8(kSerial + 2, 0);  // no FIFO
  out8(kSerial + 4, 3);
}

void put_serial(char byte) {
  while ((in8(kSerial + 5) & kTransmitterEmpty) == 0) {
  }
  out8(kSerial, static_cast<uint8_t>(byte));
}

void put_text(const char* text) {
  while (*text != 0) put_serial(*text++);
}

void start_timer(uint16_t count) {
  set_gate(kTimerVector, on_tick);
  set_gate(kSpuriousVector, on_spurious);
  const TableRegister table{sizeof idt - 1, reinterpret_cast<uint32_t>(idt)};
  asm volatile("lidtl %0" ::"m"(table) : "memory");
  // The local APIC passes the old controllers' line on: enable it, unmask LINT0 as ExtINT.
  *reinterpret_cast<volatile uint32_t*>(0xfee000f0) = 0x1ff;
  *reinterpret_cast<volatile uint32_t*>(0xfee00350) = 0x700;
  out8(0x20, 0x11);  // both controllers: edge, cascade, ICW4
  out8(0xa0, 0x11);
  out8(0x21, kTimerVector);
  out8(0xa1, 0x28);
  out8(0x21, 4);
  out8(0xa1, 2);
  out8(0x21, 1);
  out8(0xa1, 1);
  out8(0x21, 0xfe);  // the timer alone
  out8(0xa1, 0xff);
  out8(0x43, 0x34);  // channel 0, rate generator
  out8(0x40, static_cast<uint8_t>(count));
  out8(0x40, static_cast<uint8_t>(count >> 8));
}

void read_fw_cfg(uint16_t key, void* into, uint32_t bytes) {
  out16(kFwCfgSelector, key);
  read_data(into, bytes);
}

int read_fw_cfg_file(const char* name, char* into, uint32_t room) {
  uint32_t count_be = 0;
  read_fw_cfg(kFwCfgDirectory, &count_be, sizeof count_be);
  for (uint32_t left = __builtin_bswap32(count_be); left > 0; --left) {
    FwCfgFile file;
    read_data(&file, sizeof file);
    file.name[sizeof file.name - 1] = 0;
    if (!same_text(file.name, name)) continue;
    uint32_t bytes = __builtin_bswap32(file.bytes_be);
    if (bytes > room) bytes = room;
    read_fw_cfg(__builtin_bswap16(file.key_be), into, bytes);
    return static_cast<int>(bytes);
  }
  return -1;
}

}  // namespace bare

// The compiler may call these for copies and zeroing, library or not.
extern "C" void* memcpy(void* into, const void* from, unsigned int bytes) {
  void* at = into;
  asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes)::"memory");
  return into;
}
extern "C" void* memset(void* into, int value, unsigned int bytes) {
  void* at = into;
  asm volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
  return into;
}
