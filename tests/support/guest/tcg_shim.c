/* Preload library for QEMU under TCG. Part of the test and demo kit only: no product program loads
 * it, and KVM guests never run with it.
 *
 * QEMU 7.2 under TCG can deadlock at a checkpoint: its dirty-log synchronisation waits on a
 * condition without holding the mutex that belongs to it. The wait then returns owning a mutex
 * nobody releases, or a processor thread's wake-up is lost. KVM has no such path.
 *
 * This library replaces pthread_cond_wait:
 *   - a wait whose mutex the caller does not own locks it, waits 200 microseconds and unlocks it;
 *   - every other wait ends after 2 milliseconds at the latest.
 * Both are spurious wake-ups to the caller, which has to check its condition again anyway. The
 * price is some 8 % of a core for an idle guest.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { UNOWNED_WAIT_NS = 200 * 1000, WAIT_NS_MAX = 2 * 1000 * 1000 };

__attribute__((visibility("default"))) int pthread_cond_wait(pthread_cond_t* condition,
                                                             pthread_mutex_t* mutex) {
  const int owned = mutex->__data.__owner == (int)syscall(SYS_gettid);
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += owned ? WAIT_NS_MAX : UNOWNED_WAIT_NS;
  if (until.tv_nsec >= 1000000000) {
    until.tv_nsec -= 1000000000;
    ++until.tv_sec;
  }
  if (!owned) pthread_mutex_lock(mutex);
  pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &until);
  if (!owned) pthread_mutex_unlock(mutex);
  return 0;
}
