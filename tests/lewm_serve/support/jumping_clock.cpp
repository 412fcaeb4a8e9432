// A time of day that a test sets while a program runs. The program gets this library by LD_PRELOAD.
//
// The file $JUMPING_CLOCK holds the offset from the real time in seconds, as an int64. Monotonic
// clocks and all waits stay as they are.

#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static std::int64_t offset()
{
    static const volatile std::int64_t* const value = [] {
        const int file = open(std::getenv("JUMPING_CLOCK"), O_RDONLY);
        void* const memory = mmap(nullptr, sizeof(std::int64_t), PROT_READ, MAP_SHARED, file, 0);
        if (memory == MAP_FAILED) {
            std::abort();
        }
        return static_cast<const std::int64_t*>(memory);
    }();
    return *value;
}

extern "C" int clock_gettime(clockid_t clock, timespec* now) noexcept
{
    const long result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += offset();
    }
    return static_cast<int>(result);
}

extern "C" int gettimeofday(timeval* now, void*) noexcept
{
    timespec time;
    const int result = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return result;
}

extern "C" time_t time(time_t* now) noexcept
{
    timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now != nullptr) {
        *now = time.tv_sec;
    }
    return time.tv_sec;
}
