/* A libnvidia-ml.so.1 that answers from a file, so that the path through pynvml runs where there is no GPU.
 *
 * The file named by GPUBOX_NVML_STUB is read again at every call, so a test changes the box by replacing it:
 *
 *     driver = 580.65.06        what nvmlSystemGet... tell
 *     cuda = 13000
 *     init = 9                  nvmlInit answers this error (0, the default, is success)
 *     session = 1               another number than at nvmlInit: all calls answer UNINITIALIZED (the driver was reloaded)
 *     [gpu]                     one section a GPU, in index order
 *     uuid = GPU-...            each reading is a number or text, or !N: the call answers error N
 *     lost = 15                 every call on this GPU answers this error, from the handle on
 *     process = PID BYTES compute|graphics|mps    (may be repeated; BYTES -1: not available)
 *     living = PID BYTES        what a process computes with for as long as it lives; it comes on top of memory_used
 *     xid = 48                  an XID, told once for each `xid_count` (1, 2 ...) that the file has shown
 *     throttle, throttle_old    what the clocks are held down by, by the newer and the older name of the call
 *
 * Functions that are not here answer 'Function Not Found' in pynvml, as with an old driver.
 */
#define _GNU_SOURCE
#include <libgen.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, LATE = 10 };
enum { MAX_GPUS = 16, MAX_KEYS = 48, MAX_PROCESSES = 32 };

typedef unsigned int uint;
typedef unsigned long long ulong64;
typedef struct { char key[32], value[112]; } Entry;
typedef struct { uint pid; long long bytes; char kind[12]; } Process;
typedef struct { Entry entries[MAX_KEYS]; int count; Process processes[MAX_PROCESSES]; int process_count; ulong64 living; } Section;
typedef struct { Section system, gpus[MAX_GPUS]; int gpu_count; } Scenario;

/* Of each thread its own: one waits for events while another reads. */
static __thread Scenario now;
static long opened_session = -1;

static const char *find(const Section *section, const char *key) {
    for (int i = 0; i < section->count; i++)
        if (!strcmp(section->entries[i].key, key)) return section->entries[i].value;
    return NULL;
}

static long number(const Section *section, const char *key, long otherwise) {
    const char *value = find(section, key);
    return value ? strtol(value, NULL, 0) : otherwise;
}

/* A process that has ended, waited for or not, holds no memory. */
static int lives(uint pid) {
    char path[32], line[256] = "";
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    const char *end = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    return end && strlen(end) > 2 && !strchr("ZX", end[2]);
}

static int read_scenario(void) {
    const char *path = getenv("GPUBOX_NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    memset(&now, 0, sizeof now);
    Section *section = &now.system;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        Entry entry;
        Process process;
        if (!strncmp(line, "[gpu]", 5) && now.gpu_count < MAX_GPUS) {
            section = &now.gpus[now.gpu_count++];
        } else if (sscanf(line, " process = %u %lld %11s", &process.pid, &process.bytes, process.kind) == 3) {
            if (section->process_count < MAX_PROCESSES) section->processes[section->process_count++] = process;
        } else if (sscanf(line, " living = %u %lld", &process.pid, &process.bytes) == 2) {
            if (section->process_count < MAX_PROCESSES && lives(process.pid)) {
                strcpy(process.kind, "compute");
                section->living += (ulong64)process.bytes;
                section->processes[section->process_count++] = process;
            }
        } else if (sscanf(line, " %31[a-z0-9_] = %111[^\n]", entry.key, entry.value) == 2 && section->count < MAX_KEYS) {
            section->entries[section->count++] = entry;
        }
    }
    fclose(file);
    return 1;
}

/* The state of NVML as a whole before any answer. */
static int ready(void) {
    if (opened_session < 0 || !read_scenario()) return UNINITIALIZED;
    return number(&now.system, "session", 0) == opened_session ? OK : UNINITIALIZED;
}

/* Handles are indices + 1, so they outlive a change of the file. */
static int section_of(void *device, Section **section) {
    int state = ready();
    if (state) return state;
    intptr_t index = (intptr_t)device - 1;
    if (index < 0 || index >= now.gpu_count) return INVALID;
    *section = &now.gpus[index];
    return (int)number(*section, "lost", OK);
}

static int text_of(const Section *section, const char *key, char *out, uint size) {
    const char *value = find(section, key);
    if (!value) return UNSUPPORTED;
    if (value[0] == '!') return atoi(value + 1);
    if (strlen(value) + 1 > size) return TOO_SMALL;
    strcpy(out, value);
    return OK;
}

static int number_of(const Section *section, const char *key, ulong64 *out) {
    const char *value = find(section, key);
    if (!value) return UNSUPPORTED;
    if (value[0] == '!') return atoi(value + 1);
    *out = strtoull(value, NULL, 0);
    return OK;
}

static int device_text(void *device, const char *key, char *out, uint size) {
    Section *section;
    int state = section_of(device, &section);
    return state ? state : text_of(section, key, out, size);
}

static int device_number(void *device, const char *key, uint *out) {
    Section *section;
    ulong64 value = 0;
    int state = section_of(device, &section);
    if (!state) state = number_of(section, key, &value);
    if (!state) *out = (uint)value;
    return state;
}

/* The library and the driver. */

int nvmlInitWithFlags(uint flags) {
    (void)flags;
    if (!read_scenario()) return NO_DRIVER;
    int state = (int)number(&now.system, "init", OK);
    if (!state) opened_session = number(&now.system, "session", 0);
    return state;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int state = opened_session < 0 ? UNINITIALIZED : OK;
    opened_session = -1;
    return state;
}

const char *nvmlErrorString(int code) {
    static char text[48];
    snprintf(text, sizeof text, "error %d of the NVML stub", code);
    return text;
}

static int system_text(const char *key, char *out, uint size) {
    int state = ready();
    return state ? state : text_of(&now.system, key, out, size);
}

int nvmlSystemGetDriverVersion(char *out, uint size) { return system_text("driver", out, size); }
int nvmlSystemGetNVMLVersion(char *out, uint size) { return system_text("driver", out, size); }

int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    ulong64 value = 0;
    int state = ready();
    if (!state) state = number_of(&now.system, "cuda", &value);
    if (!state) *out = (int)value;
    return state;
}

int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

/* Finding a GPU. */

int nvmlDeviceGetCount_v2(uint *out) {
    int state = ready();
    if (!state) *out = (uint)now.gpu_count;
    return state;
}

int nvmlDeviceGetHandleByIndex_v2(uint index, void **out) {
    int state = ready();
    if (state) return state;
    if (index >= (uint)now.gpu_count) return INVALID;
    *out = (void *)(intptr_t)(index + 1);
    state = (int)number(&now.gpus[index], "lost", OK);
    return state ? state : (int)number(&now.gpus[index], "handle", OK);
}

static int handle_by(const char *key, const char *wanted, void **out) {
    int state = ready();
    for (int i = 0; !state && i < now.gpu_count; i++) {
        const char *value = find(&now.gpus[i], key);
        if (value && !strcmp(value, wanted)) return nvmlDeviceGetHandleByIndex_v2((uint)i, out);
    }
    return state ? state : NOT_FOUND;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) { return handle_by("uuid", uuid, out); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) { return handle_by("bus", bus, out); }

int nvmlDeviceGetIndex(void *device, uint *out) {
    Section *section;
    int state = section_of(device, &section);
    if (!state) *out = (uint)((intptr_t)device - 1);
    return state;
}

/* Two GPUs with the same `nvlink` are linked, two with the same `numa` hang on one node. */
static int same(void *one, void *other, const char *key, int *out) {
    Section *section;
    char values[2][112];
    for (int i = 0; i < 2; i++) {
        int state = section_of(i ? other : one, &section);
        if (!state) state = text_of(section, key, values[i], sizeof values[i]);
        if (state) return state;
    }
    *out = !strcmp(values[0], values[1]);
    return OK;
}

int nvmlDeviceGetP2PStatus(void *one, void *other, int what, int *out) {
    int linked = 0, state = same(one, other, "nvlink", &linked);
    if (!state) *out = linked && what == 2 ? 0 : 4;
    return state;
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, int *out) {
    int shared = 0, state = same(one, other, "numa", &shared);
    if (!state) *out = shared ? 40 : 50;
    return state;
}

/* Readings. */

int nvmlDeviceGetName(void *device, char *out, uint size) { return device_text(device, "name", out, size); }
int nvmlDeviceGetUUID(void *device, char *out, uint size) { return device_text(device, "uuid", out, size); }
int nvmlDeviceGetPowerUsage(void *device, uint *out) { return device_number(device, "power_mw", out); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, uint *out) { return device_number(device, "power_limit_mw", out); }
int nvmlDeviceGetPowerManagementLimit(void *device, uint *out) { return device_number(device, "power_limit_mw", out); }
int nvmlDeviceGetPersistenceMode(void *device, uint *out) { return device_number(device, "persistence", out); }
int nvmlDeviceGetFanSpeed(void *device, uint *out) { return device_number(device, "fan", out); }
int nvmlDeviceGetPerformanceState(void *device, uint *out) { return device_number(device, "pstate", out); }
int nvmlDeviceGetComputeMode(void *device, uint *out) { return device_number(device, "compute_mode", out); }
int nvmlDeviceGetDisplayActive(void *device, uint *out) { return device_number(device, "display", out); }
int nvmlDeviceGetDisplayMode(void *device, uint *out) { return device_number(device, "display", out); }

int nvmlDeviceGetTemperature(void *device, uint sensor, uint *out) {
    return sensor ? INVALID : device_number(device, "temperature", out);
}

typedef struct { uint version, sensor; int degrees; } Temperature;

int nvmlDeviceGetTemperatureV(void *device, Temperature *out) {
    return device_number(device, "temperature", (uint *)&out->degrees);
}

int nvmlDeviceGetClockInfo(void *device, uint type, uint *out) {
    return device_number(device, type == 2 ? "memory_clock" : "clock", out);
}

int nvmlDeviceGetMaxClockInfo(void *device, uint type, uint *out) {
    return nvmlDeviceGetClockInfo(device, type, out);
}

int nvmlDeviceGetMigMode(void *device, uint *current, uint *pending) {
    int state = device_number(device, "mig", current);
    *pending = *current;
    return state;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, uint *out) { return device_number(device, "mig_devices", out); }

int nvmlDeviceIsMigDeviceHandle(void *device, uint *out) {
    *out = 0;
    return device ? OK : INVALID;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    uint value = 0;
    int state = device_number(device, "capability", &value);
    *major = (int)value / 10;
    *minor = (int)value % 10;
    return state;
}

typedef struct { uint gpu, memory; } Utilization;

int nvmlDeviceGetUtilizationRates(void *device, Utilization *out) {
    int state = device_number(device, "utilization", &out->gpu);
    out->memory = out->gpu / 2;
    return state;
}

/* Busy encoders, decoders and sampling period: what monitors ask beside the utilization. */
static int codec(void *device, uint *out, uint *period_us) {
    *out = 0;
    *period_us = 167000;
    Section *section;
    return section_of(device, &section);
}

int nvmlDeviceGetEncoderUtilization(void *device, uint *out, uint *period_us) { return codec(device, out, period_us); }
int nvmlDeviceGetDecoderUtilization(void *device, uint *out, uint *period_us) { return codec(device, out, period_us); }

int nvmlDeviceGetTotalEccErrors(void *device, uint type, uint counter, ulong64 *out) {
    Section *section;
    int state = section_of(device, &section);
    if (!state) state = counter ? INVALID : number_of(section, type ? "ecc_uncorrected" : "ecc_corrected", out);
    return state;
}

static int long_number(void *device, const char *key, ulong64 *out) {
    Section *section;
    int state = section_of(device, &section);
    return state ? state : number_of(section, key, out);
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, ulong64 *out) { return long_number(device, "throttle", out); }

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, ulong64 *out) {
    return long_number(device, "throttle_old", out);
}

/* Events: only XIDs, and only of the GPUs that were registered. */

typedef struct { void *device; ulong64 type, data; uint gpu_instance, compute_instance; } Event;
typedef struct { int registered[MAX_GPUS]; long told[MAX_GPUS]; } EventSet;

int nvmlDeviceGetSupportedEventTypes(void *device, ulong64 *out) { return long_number(device, "events", out); }

int nvmlEventSetCreate(EventSet **out) {
    *out = calloc(1, sizeof **out);
    return ready();
}

int nvmlEventSetFree(EventSet *set) {
    free(set);
    return OK;
}

int nvmlDeviceRegisterEvents(void *device, ulong64 types, EventSet *set) {
    Section *section;
    int state = section_of(device, &section);
    intptr_t index = (intptr_t)device - 1;
    if (!state) set->registered[index] = types == 8;
    if (!state) set->told[index] = number(section, "xid_count", 0);
    return state;
}

/* Tell of what is moved into the scenario's folder; -1 where that cannot be watched. */
static int watch_of_replacing(void) {
    const char *path = getenv("GPUBOX_NVML_STUB");
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path ? path : "");
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch >= 0) inotify_add_watch(watch, dirname(folder), IN_MOVED_TO);
    return watch;
}

/* The real one sleeps in the driver: this must cost nothing beside what is measured, and so does not look by the clock. */
int nvmlEventSetWait_v2(EventSet *set, Event *out, uint timeout_ms) {
    struct pollfd replaced = {.fd = watch_of_replacing(), .events = POLLIN};
    int state = ready();
    for (int tries = 0; !state && tries < 2; tries++) {
        for (int i = 0; i < now.gpu_count; i++) {
            long count = number(&now.gpus[i], "xid_count", 0);
            if (!set->registered[i] || count <= set->told[i]) continue;
            set->told[i]++;
            *out = (Event){(void *)(intptr_t)(i + 1), 8, (ulong64)number(&now.gpus[i], "xid", 0), ~0U, ~0U};
            close(replaced.fd);
            return OK;
        }
        if (tries) break;
        poll(&replaced, 1, (int)timeout_ms);
        state = ready();
    }
    close(replaced.fd);
    return state ? state : LATE;
}

int nvmlDeviceGetProcessUtilization(void *device, void *samples, uint *count, ulong64 since) {
    (void)samples;
    (void)since;
    *count = 0;
    Section *section;
    int state = section_of(device, &section);
    return state ? state : NOT_FOUND;
}

/* Windows only, as on every Linux driver. */
static int driver_model(void *device, uint *current, uint *pending) {
    *current = *pending = 0;
    return device ? UNSUPPORTED : INVALID;
}

int nvmlDeviceGetDriverModel(void *device, uint *current, uint *pending) { return driver_model(device, current, pending); }
int nvmlDeviceGetDriverModel_v2(void *device, uint *current, uint *pending) { return driver_model(device, current, pending); }

typedef struct { uint version; ulong64 total, reserved, free, used; } Memory;
typedef struct { ulong64 total, free, used; } MemoryV1;

/* `error_key` lets a scenario refuse one form of the call alone. */
static int memory_of(void *device, const char *error_key, Memory *out) {
    Section *section;
    int state = section_of(device, &section);
    if (state) return state;
    const char *refused = find(section, error_key);
    if (refused && refused[0] == '!') return atoi(refused + 1);
    if ((state = number_of(section, "memory_total", &out->total))) return state;
    if (number_of(section, "memory_reserved", &out->reserved)) out->reserved = 0;
    if ((state = number_of(section, "memory_used", &out->used))) return state;
    out->used += section->living;
    out->free = out->total - out->reserved - out->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *out) { return memory_of(device, "memory_v2", out); }

int nvmlDeviceGetMemoryInfo(void *device, MemoryV1 *out) {
    Memory memory = {0};
    int state = memory_of(device, "memory_v1", &memory);
    out->total = memory.total;
    out->free = memory.free;
    out->used = memory.used + memory.reserved;
    return state;
}

typedef struct { char legacy_bus[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

int nvmlDeviceGetPciInfo_v3(void *device, Pci *out) {
    memset(out, 0, sizeof *out);
    int state = device_text(device, "bus", out->bus_id, sizeof out->bus_id);
    if (!state) {
        sscanf(out->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
        snprintf(out->legacy_bus, sizeof out->legacy_bus, "%04X:%02X:%02X.0", out->domain, out->bus, out->device);
    }
    return state;
}

typedef struct { uint pid; ulong64 bytes; uint gpu_instance, compute_instance; } ProcessInfo;

static int processes_of(void *device, const char *kind, const char *error_key, uint *count, ProcessInfo *out) {
    Section *section;
    int state = section_of(device, &section);
    if (state) return state;
    const char *refused = find(section, error_key);
    if (refused && refused[0] == '!') return atoi(refused + 1);
    uint room = *count, found = 0;
    for (int i = 0; i < section->process_count; i++) {
        const Process *process = &section->processes[i];
        if (strcmp(process->kind, kind)) continue;
        if (out && found < room) {
            ulong64 bytes = process->bytes < 0 ? ~0ULL : (ulong64)process->bytes;
            out[found] = (ProcessInfo){process->pid, bytes, ~0U, ~0U};
        }
        found++;
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}

#define PROCESS_LISTS(NAME, KIND)                                                                \
    int NAME##_v3(void *device, uint *count, ProcessInfo *out) {                                 \
        return processes_of(device, KIND, "processes_v3", count, out);                           \
    }                                                                                            \
    int NAME##_v2(void *device, uint *count, ProcessInfo *out) {                                 \
        return processes_of(device, KIND, "processes_v2", count, out);                           \
    }

PROCESS_LISTS(nvmlDeviceGetComputeRunningProcesses, "compute")
PROCESS_LISTS(nvmlDeviceGetGraphicsRunningProcesses, "graphics")
PROCESS_LISTS(nvmlDeviceGetMPSComputeRunningProcesses, "mps")
