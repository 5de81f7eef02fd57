// The little of a PC the bare guest touches: ports, serial port, timer, interrupt controllers, and
// QEMU's fw_cfg. Freestanding, 32 bits.
#pragma once

#include <stdint.h>

namespace bare {

inline void out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline void out16(uint16_t port, uint16_t value) {
  asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline uint8_t in8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint64_t time_stamp() {
  uint32_t low;
  uint32_t high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
  return uint64_t{high} << 32 | low;
}

/// COM1 without interrupts and FIFO: a byte that was written has left the machine, or is in the
/// transmitter's state, which QEMU saves with the devices.
void start_serial();
void put_serial(char byte);
void put_text(const char* text);

/// One timer interrupt every `count` cycles of 1.193182 MHz (1 to 65535), delivered to on_tick.
void start_timer(uint16_t count);

inline constexpr uint16_t kFwCfgRamBytes = 0x03;
inline constexpr uint16_t kFwCfgDirectory = 0x19;
/// Reads `bytes` bytes of the fw_cfg item `key` from its start.
void read_fw_cfg(uint16_t key, void* into, uint32_t bytes);
/// Copies the named fw_cfg file into `into` (at most `room` bytes); its length, or -1 without it.
int read_fw_cfg_file(const char* name, char* into, uint32_t room);

}  // namespace bare

// firmware.S
extern "C" void wait_for_tick();
extern "C" void on_tick();
extern "C" void on_spurious();
