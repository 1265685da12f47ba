/* A driver's library for GPUs that are not there: what NVML says is what stands in the file that STUB_NVML names.
 *
 * Whoever writes to that file changes the world while programs look at it. `tests/nvml/simulated.py` knows the layout.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST_GPUS 24
#define MOST_INSTANCES 7
#define MOST_EVENTS 256
#define MOST_PROCESSES 16
#define EXPORT __attribute__((visibility("default")))

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, NO_ROOM = 7, NOT_LOADED = 9, TIMED_OUT = 10 };

typedef struct { uint32_t pid, unused; uint64_t used; } Process;

typedef struct {
    char uuid[96], name[96], serial[32];
    uint64_t total, used, reserved, ecc_errors;
    uint32_t busy, memory_busy;           /* percent */
    uint32_t temperature, temperature_limit;
    uint32_t power, power_limit;          /* milliwatts */
    uint32_t fan;                         /* percent */
    uint32_t clock, memory_clock, most_clock, most_memory_clock;
    uint32_t major, minor;
    uint32_t ecc, persistence;
    uint32_t error;                       /* each call that names this GPU returns it; 0: none */
    uint32_t processes;
    uint32_t delay;                       /* milliseconds that each of those calls takes */
    uint32_t parent, instance;            /* of a MIG instance: its GPU's number plus 1, and its own there; 0: a GPU */
    uint32_t divided;                     /* it is in MIG mode */
    Process process[MOST_PROCESSES];
} Gpu;

typedef struct { uint32_t gpu, unused; uint64_t kind, value; } Event;

typedef struct {
    uint32_t count;                       /* of GPUs; the instances of those that are divided lie behind them */
    uint32_t error;                       /* of the library itself, at its start */
    uint32_t events;                      /* so many so far; each lies at its number modulo MOST_EVENTS */
    uint32_t unused;
    char driver[32];
    Event event[MOST_EVENTS];
    Gpu gpu[MOST_GPUS];
} World;

typedef struct { uint32_t next; uint64_t kinds[MOST_GPUS]; } EventSet;

static volatile World *world;

static int open_world(void) {
    const char *path = getenv("STUB_NVML");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return NOT_LOADED;
    void *map = mmap(NULL, sizeof(World), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return NOT_LOADED;
    world = map;
    return OK;
}

static int text(char *out, unsigned size, const volatile char *from) {
    if (strlen((const char *)from) >= size)
        return NO_ROOM;
    strcpy(out, (const char *)from);
    return OK;
}

static void take_time(volatile Gpu *gpu) {
    const struct timespec pause = {0, 1000000};
    for (uint32_t waited = 0; waited < gpu->delay; waited++)
        nanosleep(&pause, NULL);
}

#define ASK(gpu) do { \
        if (!(gpu)) return INVALID; \
        take_time(gpu); \
        if ((gpu)->error) return (int)(gpu)->error; \
    } while (0)
#define ASK_WHOLE(gpu) do { \
        ASK(gpu); \
        if ((gpu)->parent) return NOT_SUPPORTED; /* no driver says that of an instance */ \
    } while (0)
#define ANSWER(name, type, what) \
    EXPORT int name(volatile Gpu *gpu, type *out) { ASK(gpu); *out = (type)(what); return OK; }

/* --- the library --- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!world) {
        int code = open_world();
        if (code)
            return code;
    }
    return (int)world->error;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) { return OK; }

EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "Success";
    case INVALID: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case NO_ROOM: return "Insufficient Size";
    case NOT_LOADED: return "Driver Not Loaded";
    case TIMED_OUT: return "Timeout";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    default: return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(out, size, world->driver); }
EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned size) { return text(out, size, "12.0.0"); }
EXPORT int nvmlSystemGetCudaDriverVersion(int *out) { *out = 12080; return OK; }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 12080; return OK; }
EXPORT int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char path[64], name[64] = "";
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NOT_FOUND;
    if (fgets(name, sizeof name, file))
        name[strcspn(name, "\n")] = 0;
    fclose(file);
    return text(out, size, name);
}

/* --- which GPUs there are --- */

EXPORT int nvmlDeviceGetCount_v2(unsigned *out) { *out = world->count; return OK; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, volatile Gpu **out) {
    if (index >= world->count)
        return INVALID;
    *out = &world->gpu[index];
    return (int)(*out)->error;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, volatile Gpu **out) {
    for (unsigned index = 0; index < MOST_GPUS; index++)
        if (*uuid && !strcmp((const char *)world->gpu[index].uuid, uuid)) {
            *out = &world->gpu[index];
            return (int)(*out)->error;
        }
    return NOT_FOUND;
}
ANSWER(nvmlDeviceGetIndex, unsigned, gpu - world->gpu)
ANSWER(nvmlDeviceGetMinorNumber, unsigned, gpu - world->gpu)
EXPORT int nvmlDeviceGetName(volatile Gpu *gpu, char *out, unsigned size) { ASK(gpu); return text(out, size, gpu->name); }
EXPORT int nvmlDeviceGetUUID(volatile Gpu *gpu, char *out, unsigned size) { ASK(gpu); return text(out, size, gpu->uuid); }
EXPORT int nvmlDeviceGetSerial(volatile Gpu *gpu, char *out, unsigned size) {
    ASK(gpu);
    return text(out, size, gpu->serial);
}
EXPORT int nvmlDeviceGetCudaComputeCapability(volatile Gpu *gpu, int *major, int *minor) {
    ASK(gpu);
    *major = (int)gpu->major;
    *minor = (int)gpu->minor;
    return OK;
}
EXPORT int nvmlDeviceGetMigMode(volatile Gpu *gpu, unsigned *now, unsigned *then) {
    ASK_WHOLE(gpu);
    *now = *then = gpu->divided;
    return OK;
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(volatile Gpu *gpu, unsigned *out) {
    ASK_WHOLE(gpu);
    *out = gpu->divided ? MOST_INSTANCES : 0;
    return OK;
}
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(volatile Gpu *gpu, unsigned number, volatile Gpu **out) {
    ASK_WHOLE(gpu);
    for (unsigned index = world->count; index < MOST_GPUS; index++) {
        *out = &world->gpu[index];
        if ((*out)->parent == (uint32_t)(gpu - world->gpu) + 1 && (*out)->instance == number)
            return (int)(*out)->error;
    }
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetGpuInstanceId(volatile Gpu *gpu, unsigned *out) {
    ASK(gpu);
    *out = gpu->instance;
    return gpu->parent ? OK : NOT_SUPPORTED;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char name[32];
} Pci;
EXPORT int nvmlDeviceGetPciInfo_v3(volatile Gpu *gpu, Pci *out) {
    ASK(gpu);
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)(gpu - world->gpu) + 1;
    out->id = 0x268410DE;
    snprintf(out->name, sizeof out->name, "00000000:%02X:00.0", out->bus);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    return OK;
}

/* --- memory --- */

typedef struct { uint64_t total, free, used; } Memory;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } Memory2;
EXPORT int nvmlDeviceGetMemoryInfo(volatile Gpu *gpu, Memory *out) {
    ASK(gpu);
    uint64_t used = gpu->used + gpu->reserved;
    *out = (Memory){gpu->total, gpu->total - used, used};
    return OK;
}
EXPORT int nvmlDeviceGetMemoryInfo_v2(volatile Gpu *gpu, Memory2 *out) {
    ASK(gpu);
    uint64_t used = gpu->used;
    *out = (Memory2){out->version, gpu->total, gpu->reserved, gpu->total - used - gpu->reserved, used};
    return OK;
}
EXPORT int nvmlDeviceGetBAR1MemoryInfo(volatile Gpu *gpu, Memory *out) {
    ASK(gpu);
    *out = (Memory){256 << 20, 255 << 20, 1 << 20};
    return OK;
}

typedef struct { unsigned pid; uint64_t used; unsigned instance, compute_instance; } Running;
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(volatile Gpu *gpu, unsigned *count, Running *out) {
    ASK(gpu);
    unsigned room = *count, there = gpu->processes;
    *count = there;
    if (there > room)
        return NO_ROOM;
    for (unsigned each = 0; each < there; each++)
        out[each] = (Running){gpu->process[each].pid, gpu->process[each].used, 0xFFFFFFFF, 0xFFFFFFFF};
    return OK;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(volatile Gpu *gpu, unsigned *count, Running *out) {
    return nvmlDeviceGetComputeRunningProcesses_v3(gpu, count, out);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(volatile Gpu *gpu, unsigned *count, Running *out) {
    ASK(gpu);
    (void)out;
    *count = 0;
    return OK;
}

/* --- how it is --- */

typedef struct { unsigned gpu, memory; } Utilization;
EXPORT int nvmlDeviceGetUtilizationRates(volatile Gpu *gpu, Utilization *out) {
    ASK_WHOLE(gpu);
    *out = (Utilization){gpu->busy, gpu->memory_busy};
    return OK;
}
EXPORT int nvmlDeviceGetEncoderUtilization(volatile Gpu *gpu, unsigned *out, unsigned *period) {
    ASK(gpu);
    *out = 0;
    *period = 1000000;
    return OK;
}
EXPORT int nvmlDeviceGetDecoderUtilization(volatile Gpu *gpu, unsigned *out, unsigned *period) {
    return nvmlDeviceGetEncoderUtilization(gpu, out, period);
}
EXPORT int nvmlDeviceGetTemperature(volatile Gpu *gpu, unsigned sensor, unsigned *out) {
    ASK_WHOLE(gpu);
    (void)sensor;
    *out = gpu->temperature;
    return OK;
}
typedef struct { unsigned version, sensor; int temperature; } Temperature;
EXPORT int nvmlDeviceGetTemperatureV(volatile Gpu *gpu, Temperature *out) {
    ASK_WHOLE(gpu);
    out->temperature = (int)gpu->temperature;
    return OK;
}
EXPORT int nvmlDeviceGetTemperatureThreshold(volatile Gpu *gpu, unsigned which, unsigned *out) {
    ASK(gpu);
    (void)which;
    *out = gpu->temperature_limit;
    return OK;
}
EXPORT int nvmlDeviceGetPowerUsage(volatile Gpu *gpu, unsigned *out) {
    ASK_WHOLE(gpu);
    *out = gpu->power;
    return OK;
}
ANSWER(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->power_limit)
ANSWER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->power_limit)
ANSWER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->power_limit)
ANSWER(nvmlDeviceGetPowerManagementMode, unsigned, 1)
ANSWER(nvmlDeviceGetFanSpeed, unsigned, gpu->fan)
ANSWER(nvmlDeviceGetPersistenceMode, unsigned, gpu->persistence)
ANSWER(nvmlDeviceGetPerformanceState, unsigned, gpu->busy ? 0 : 8)
ANSWER(nvmlDeviceGetComputeMode, unsigned, 0)
ANSWER(nvmlDeviceGetBrand, unsigned, 14)
ANSWER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, 4)
ANSWER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, 4)
ANSWER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, 16)
ANSWER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, 16)
ANSWER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, 0)
ANSWER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, 0)
EXPORT int nvmlDeviceGetPcieThroughput(volatile Gpu *gpu, unsigned counter, unsigned *out) {
    ASK(gpu);
    (void)counter;
    *out = 0;
    return OK;
}
EXPORT int nvmlDeviceGetFanSpeed_v2(volatile Gpu *gpu, unsigned fan, unsigned *out) {
    return fan ? INVALID : nvmlDeviceGetFanSpeed(gpu, out);
}
EXPORT int nvmlDeviceGetClockInfo(volatile Gpu *gpu, unsigned kind, unsigned *out) {
    ASK(gpu);
    *out = kind == 2 ? gpu->memory_clock : gpu->clock;
    return OK;
}
EXPORT int nvmlDeviceGetMaxClockInfo(volatile Gpu *gpu, unsigned kind, unsigned *out) {
    ASK(gpu);
    *out = kind == 2 ? gpu->most_memory_clock : gpu->most_clock;
    return OK;
}
EXPORT int nvmlDeviceGetEccMode(volatile Gpu *gpu, unsigned *now, unsigned *then) {
    ASK(gpu);
    *now = *then = gpu->ecc;
    return OK;
}
EXPORT int nvmlDeviceGetTotalEccErrors(volatile Gpu *gpu, unsigned kind, unsigned counter, unsigned long long *out) {
    ASK(gpu);
    (void)counter;
    *out = kind == 1 ? gpu->ecc_errors : 0;
    return gpu->ecc ? OK : NOT_SUPPORTED;
}

/* --- what it reports by itself --- */

typedef struct {
    volatile Gpu *gpu;
    unsigned long long kind, value;
    unsigned instance, compute_instance;
} EventData;

EXPORT int nvmlDeviceGetSupportedEventTypes(volatile Gpu *gpu, unsigned long long *out) {
    ASK(gpu);
    *out = gpu->ecc ? ~0ULL : ~2ULL;      /* without ECC no GPU reports double bit errors */
    return OK;
}
EXPORT int nvmlEventSetCreate(EventSet **out) {
    *out = calloc(1, sizeof(EventSet));
    if (!*out)
        return NO_ROOM;
    (*out)->next = world->events;
    return OK;
}
EXPORT int nvmlEventSetFree(EventSet *set) {
    free(set);
    return OK;
}
EXPORT int nvmlDeviceRegisterEvents(volatile Gpu *gpu, unsigned long long kinds, EventSet *set) {
    ASK(gpu);
    if (!gpu->ecc && kinds & 2)
        return NOT_SUPPORTED;
    set->kinds[gpu - world->gpu] = kinds;
    return OK;
}
EXPORT int nvmlEventSetWait_v2(EventSet *set, EventData *out, unsigned timeout_ms) {
    const struct timespec pause = {0, 5000000};
    for (unsigned waited = 0; waited <= timeout_ms; waited += 5) {
        while (set->next != world->events) {
            volatile Event *event = &world->event[set->next++ % MOST_EVENTS];
            if (event->gpu >= MOST_GPUS || !(set->kinds[event->gpu] & event->kind))
                continue;
            *out = (EventData){&world->gpu[event->gpu], event->kind, event->value, 0xFFFFFFFF, 0xFFFFFFFF};
            return OK;
        }
        nanosleep(&pause, NULL);
    }
    return TIMED_OUT;
}
