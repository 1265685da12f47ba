/* A driver's CUDA for GPUs that are not there: what looks whether a GPU can be used finds that it can. */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int cuInit(unsigned flags) { (void)flags; return 0; }
EXPORT int cuDeviceGet(int *out, int ordinal) { *out = ordinal; return 0; }
EXPORT int cuDeviceGetCount(int *out) { *out = 1; return 0; }
EXPORT int cuDriverGetVersion(int *out) { *out = 12080; return 0; }
EXPORT int cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; *out = (void *)1; return 0; }
EXPORT int cuCtxSetCurrent(void *context) { (void)context; return 0; }
EXPORT int cuMemAlloc_v2(uint64_t *out, size_t size) { (void)size; *out = 1 << 20; return 0; }
EXPORT int cuMemFree_v2(uint64_t memory) { (void)memory; return 0; }
EXPORT int cuGetErrorString(int code, const char **out) { (void)code; *out = "no error"; return 0; }
