/* An NVML that is none: an energy counter that goes through the readings a test gives, and fixed clocks. */
#include <string.h>

static unsigned long long readings[64];
static int given, read_, refused, unsupported, open_;
static char bus[32];

void fake_readings(int count, const unsigned long long *values) {
    memcpy(readings, values, count * sizeof *values);
    given = count;
    read_ = 0;
}
void fake_refuse(int code) { refused = code; }
void fake_unsupported(int code) { unsupported = code; }
const char *fake_bus(void) { return bus; }
int fake_open(void) { return open_; }

const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : code == 6 ? "Not Found" : "Unknown"; }
int nvmlInit_v2(void) { open_++; return 0; }
int nvmlShutdown(void) { open_--; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    strncpy(bus, id, sizeof bus - 1);
    *device = bus;
    return refused;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (unsupported || device != bus) return unsupported ? unsupported : 2;
    *millijoules = readings[read_];
    if (read_ < given - 1) read_++;
    return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    if (unsupported || device != bus || sensor) return 3;
    *celsius = 41;
    return 0;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) {
    if (unsupported || device != bus) return 3;
    *mhz = kind == 0 ? 1980 : kind == 2 ? 2619 : 0;
    return 0;
}
