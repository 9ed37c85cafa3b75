/* A simulated libnvidia-ml.so.1: what jaxenergy asks of NVML, with cards described by a small text
 * file, so that the real Python binding can be driven on a machine without a GPU.
 *
 * The file is named by SIMULATED_NVML_STATE and read again whenever it is replaced; without the
 * variable the library says that no driver is loaded. Lines are `key=value`; keys of a card begin
 * with its number, e.g. `0.uuid=GPU-1`. Times are CLOCK_MONOTONIC nanoseconds (Python's
 * time.monotonic_ns), power is in milliwatts. tests/simulated_nvml.py writes such files and
 * explains each key.
 *
 * Power is piecewise constant (`steps`), or a square wave from `origin_ns` on. The energy counter is
 * its exact integral since `origin_ns`, shown as it was at the last tick.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15,
};
enum { MAX_GPUS = 16, MAX_STEPS = 256, MAX_PIDS = 64, TEXT = 96 };

typedef struct {
    char uuid[TEXT], pci[TEXT], name[TEXT];
    int has_energy, has_instant, has_usage, architecture, mig, error;
    int64_t origin_ns, tick_ns, sensor_tick_ns, usage_mean_ns, lost_at_ns;
    double start_mj, counter_scale;
    int steps;
    int64_t step_ns[MAX_STEPS];
    double step_mw[MAX_STEPS];
    double square_low_mw, square_high_mw;
    int64_t square_period_ns;
    unsigned temperature, sm_mhz, memory_mhz, limit_mw, max_limit_mw;
    unsigned long long throttle;
    unsigned pids[MAX_PIDS], graphics_pids[MAX_PIDS];
    int pid_count, graphics_pid_count;
} gpu_t;

static struct {
    int initialized, init_error, gpu_count;
    char driver[TEXT];
    gpu_t gpus[MAX_GPUS];
    struct timespec modified;
    ino_t inode;
} state;

/* Python's ctypes calls from several threads at once. */
static pthread_mutex_t mutex;
static void unlock(int *unused) { (void)unused; pthread_mutex_unlock(&mutex); }
__attribute__((constructor)) static void make_mutex(void) {
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &recursive);
}
#define LOCK                                                   \
    __attribute__((cleanup(unlock), unused)) int locked = 0;   \
    pthread_mutex_lock(&mutex);

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int read_pids(const char *text, unsigned *pids) {
    int count = 0;
    for (char *end; *text && count < MAX_PIDS; text = *end ? end + 1 : end)
        pids[count++] = (unsigned)strtoul(text, &end, 10);
    return count;
}

static void read_steps(const char *text, gpu_t *gpu) {
    gpu->steps = 0;
    while (*text && gpu->steps < MAX_STEPS) {
        char *end;
        gpu->step_ns[gpu->steps] = strtoll(text, &end, 10);
        gpu->step_mw[gpu->steps++] = strtod(end + 1, &end);
        text = *end ? end + 1 : end;
    }
}

static void set_gpu(gpu_t *gpu, const char *key, const char *value) {
    struct { const char *key; char *target; } texts[] = {
        {"uuid", gpu->uuid}, {"pci", gpu->pci}, {"name", gpu->name}};
    struct { const char *key; int *target; } integers[] = {
        {"has_energy", &gpu->has_energy}, {"has_instant", &gpu->has_instant},
        {"has_usage", &gpu->has_usage}, {"architecture", &gpu->architecture},
        {"mig", &gpu->mig}, {"error", &gpu->error}};
    struct { const char *key; int64_t *target; } times[] = {
        {"origin_ns", &gpu->origin_ns}, {"tick_ns", &gpu->tick_ns},
        {"sensor_tick_ns", &gpu->sensor_tick_ns}, {"usage_mean_ns", &gpu->usage_mean_ns},
        {"lost_at_ns", &gpu->lost_at_ns}, {"square_period_ns", &gpu->square_period_ns}};
    struct { const char *key; double *target; } numbers[] = {
        {"start_mj", &gpu->start_mj}, {"counter_scale", &gpu->counter_scale},
        {"square_low_mw", &gpu->square_low_mw}, {"square_high_mw", &gpu->square_high_mw}};
    struct { const char *key; unsigned *target; } units[] = {
        {"temperature", &gpu->temperature}, {"sm_mhz", &gpu->sm_mhz},
        {"memory_mhz", &gpu->memory_mhz}, {"limit_mw", &gpu->limit_mw},
        {"max_limit_mw", &gpu->max_limit_mw}};
#define SET(table, assign)                                          \
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)       \
        if (!strcmp(key, table[i].key)) { assign; return; }
    SET(texts, snprintf(texts[i].target, TEXT, "%s", value))
    SET(integers, *integers[i].target = atoi(value))
    SET(times, *times[i].target = strtoll(value, NULL, 10))
    SET(numbers, *numbers[i].target = strtod(value, NULL))
    SET(units, *units[i].target = (unsigned)strtoul(value, NULL, 10))
    if (!strcmp(key, "throttle")) gpu->throttle = strtoull(value, NULL, 10);
    else if (!strcmp(key, "steps")) read_steps(value, gpu);
    else if (!strcmp(key, "pids")) gpu->pid_count = read_pids(value, gpu->pids);
    else if (!strcmp(key, "graphics_pids"))
        gpu->graphics_pid_count = read_pids(value, gpu->graphics_pids);
    else fprintf(stderr, "simulated NVML: unknown key %s\n", key), abort();
}

/* Reads the state again where its file has been replaced. */
static int refresh(void) {
    const char *path = getenv("SIMULATED_NVML_STATE");
    struct stat info;
    if (!path || stat(path, &info)) return DRIVER_NOT_LOADED;
    if (info.st_ino == state.inode && !memcmp(&info.st_mtim, &state.modified, sizeof info.st_mtim))
        return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return DRIVER_NOT_LOADED;
    static char line[16384];
    memset(state.gpus, 0, sizeof state.gpus);
    state.gpu_count = state.init_error = 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(line, "driver")) snprintf(state.driver, TEXT, "%s", value);
        else if (!strcmp(line, "init_error")) state.init_error = atoi(value);
        else {
            char *key;
            int number = (int)strtol(line, &key, 10);
            if (number < 0 || number >= MAX_GPUS || *key != '.') abort();
            if (number >= state.gpu_count) state.gpu_count = number + 1;
            set_gpu(&state.gpus[number], key + 1, value);
        }
    }
    fclose(file);
    state.inode = info.st_ino;
    state.modified = info.st_mtim;
    return SUCCESS;
}

/* Millijoules that `gpu` drew from its origin to `end`. */
static double energy_mj(const gpu_t *gpu, int64_t end) {
    double energy = 0;
    int64_t start = gpu->origin_ns;
    if (end <= start) return 0;
    if (gpu->square_period_ns) { /* low in the first half of each period */
        int64_t half = gpu->square_period_ns / 2, whole = (end - start) / gpu->square_period_ns;
        int64_t rest = (end - start) % gpu->square_period_ns;
        int64_t low = whole * half + (rest < half ? rest : half);
        return (gpu->square_low_mw * (double)low
                + gpu->square_high_mw * (double)(end - start - low)) * 1e-9;
    }
    for (int i = 0; i < gpu->steps; i++) {
        int64_t from = gpu->step_ns[i] > start ? gpu->step_ns[i] : start;
        int64_t to = i + 1 < gpu->steps && gpu->step_ns[i + 1] < end ? gpu->step_ns[i + 1] : end;
        if (to > from) energy += gpu->step_mw[i] * (double)(to - from) * 1e-9;
    }
    return energy;
}

static int64_t last_tick(const gpu_t *gpu, int64_t tick_ns) {
    int64_t now = now_ns();
    return tick_ns ? now - (now - gpu->origin_ns) % tick_ns : now;
}

/* Mean power over `mean_ns` up to the sensor's last tick. */
static unsigned power_mw(const gpu_t *gpu, int64_t mean_ns) {
    int64_t end = last_tick(gpu, gpu->sensor_tick_ns);
    if (mean_ns < 1000) mean_ns = 1000;
    if (end - mean_ns < gpu->origin_ns) mean_ns = end - gpu->origin_ns;
    if (mean_ns <= 0) { end = gpu->origin_ns + 1000; mean_ns = 1000; }
    double energy = energy_mj(gpu, end) - energy_mj(gpu, end - mean_ns);
    return (unsigned)(energy / ((double)mean_ns * 1e-9) + 0.5);
}

/* Begins every function that is asked of a card. */
#define GPU(handle)                                                                      \
    LOCK                                                                                 \
    if (!state.initialized) return UNINITIALIZED;                                        \
    refresh();                                                                           \
    gpu_t *gpu = (gpu_t *)(handle);                                                      \
    if (gpu < state.gpus || gpu >= state.gpus + state.gpu_count) return INVALID_ARGUMENT; \
    if (gpu->lost_at_ns && now_ns() >= gpu->lost_at_ns) return GPU_IS_LOST;              \
    if (gpu->error) return gpu->error;

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    LOCK
    int failed = refresh();
    if (failed || state.init_error) return failed ? failed : state.init_error;
    state.initialized++;
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    LOCK
    if (!state.initialized) return UNINITIALIZED;
    state.initialized--;
    return SUCCESS;
}
const char *nvmlErrorString(int code) {
    static char text[TEXT];
    snprintf(text, sizeof text, "simulated error %d", code);
    return text;
}
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    if (!state.initialized) return UNINITIALIZED;
    snprintf(text, length, "%s", state.driver);
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    LOCK
    if (!state.initialized) return UNINITIALIZED;
    refresh();
    *count = (unsigned)state.gpu_count;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    LOCK
    if (!state.initialized) return UNINITIALIZED;
    refresh();
    if (index >= (unsigned)state.gpu_count) return INVALID_ARGUMENT;
    *handle = &state.gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    GPU(handle)
    snprintf(text, length, "%s", gpu->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    GPU(handle)
    snprintf(text, length, "%s", gpu->name);
    return SUCCESS;
}
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info_t;
int nvmlDeviceGetPciInfo_v3(void *handle, pci_info_t *info) {
    GPU(handle)
    memset(info, 0, sizeof *info);
    sscanf(gpu->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->bus_id, sizeof info->bus_id, "%.31s", gpu->pci);
    return SUCCESS;
}
int nvmlDeviceGetArchitecture(void *handle, unsigned *architecture) {
    GPU(handle)
    *architecture = (unsigned)gpu->architecture;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    GPU(handle)
    if (gpu->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpu->mig;
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy) {
    GPU(handle)
    if (!gpu->has_energy) return NOT_SUPPORTED;
    double drawn = energy_mj(gpu, last_tick(gpu, gpu->tick_ns));
    *energy = (unsigned long long)(gpu->start_mj + gpu->counter_scale * drawn);
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *power) {
    GPU(handle)
    if (!gpu->has_usage) return NOT_SUPPORTED;
    *power = power_mw(gpu, gpu->usage_mean_ns);
    return SUCCESS;
}
typedef struct {
    unsigned field_id, scope_id;
    int64_t timestamp, latency_us;
    int value_type, result;
    union { double d; unsigned ui; unsigned long long ull; } value;
} field_t;
int nvmlDeviceGetFieldValues(void *handle, int count, field_t *fields) {
    GPU(handle)
    for (int i = 0; i < count; i++) {
        field_t *field = &fields[i];
        field->result = SUCCESS;
        if (field->field_id == 83 && gpu->has_energy) {
            field->value_type = 3;
            nvmlDeviceGetTotalEnergyConsumption(handle, &field->value.ull);
        } else if (field->field_id == 186 && gpu->has_instant) {
            field->value_type = 1;
            field->value.ui = power_mw(gpu, 0);
        } else if (field->field_id == 185 && gpu->has_usage) {
            field->value_type = 1;
            field->value.ui = power_mw(gpu, gpu->usage_mean_ns);
        } else {
            field->result = NOT_SUPPORTED;
        }
    }
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *limit) {
    GPU(handle)
    *limit = gpu->limit_mw;
    return SUCCESS;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *least, unsigned *most) {
    GPU(handle)
    *least = gpu->max_limit_mw / 4;
    *most = gpu->max_limit_mw;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *temperature) {
    (void)sensor;
    GPU(handle)
    *temperature = gpu->temperature;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *mhz) {
    GPU(handle)
    *mhz = clock == 2 ? gpu->memory_mhz : gpu->sm_mhz;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    GPU(handle)
    *reasons = gpu->throttle;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(handle, reasons);
}
typedef struct {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance, compute_instance;
} process_t;
static int list_processes(const unsigned *pids, int there, unsigned *count, process_t *listed) {
    unsigned room = *count;
    *count = (unsigned)there;
    if (room < (unsigned)there || (there && !listed)) return INSUFFICIENT_SIZE;
    for (int i = 0; i < there; i++)
        listed[i] = (process_t){.pid = pids[i], .used_memory = 1 << 30};
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *listed) {
    GPU(handle)
    return list_processes(gpu->pids, gpu->pid_count, count, listed);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_t *listed) {
    GPU(handle)
    return list_processes(gpu->graphics_pids, gpu->graphics_pid_count, count, listed);
}
