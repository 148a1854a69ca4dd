#pragma once

#define TORCH_ERROR_CODE_CHECK(call) call

inline void aoti_torch_get_current_cuda_stream(int, void** stream) { *stream = nullptr; }
