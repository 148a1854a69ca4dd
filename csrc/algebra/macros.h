// What lets one source serve the host and the device.
#pragma once

#ifdef __CUDACC__
#define DEQ_HOST_DEVICE __host__ __device__
#else
#define DEQ_HOST_DEVICE
#endif
