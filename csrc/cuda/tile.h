// One tile of one sample as the threads of a block hold it: loads, stores and sums.
//
// A tile is cut into vectors of kVector neighbouring elements, 16 bytes of the stored rows; thread
// t holds the vectors t, t + kGpuThreads, ... So the element that a thread works on, and with it
// the order of every sum, depends on the type of the rows alone.
//
// `Block` is the group of threads a body runs in: DeviceBlock (device.cuh) on a GPU, the block
// emulator of csrc/test on the host.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "algebra/macros.h"
#include "algebra/multiply_add.h"
#include "algebra/types.h"
#include "cuda/convert.h"
#include "cuda/plan.h"

namespace deq {

// `count` neighbouring elements, moved in pieces of up to 16 bytes.
template <typename T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
  T values[count];
};

// 16 bytes of a stored row, as words: a register holds two short elements until they are used.
struct alignas(16) Slot {
  uint32_t words[4];
};

template <typename T>
DEQ_DEVICE accumulate_t<T> slot_item(const Slot& slot, int i) {
  constexpr int per_word = static_cast<int>(4 / sizeof(T));
  T value;
  if constexpr (sizeof(T) == 2) {
    value.bits = static_cast<uint16_t>(slot.words[i / per_word] >> (16 * (i % per_word)));
  } else {
    memcpy(&value, slot.words + i * static_cast<int>(sizeof(T) / 4), sizeof(value));
  }
  return widen(value);
}

// A slot whose elements are read one by one, zero from `size` on: for the end of a row, and for
// rows that do not begin on 16 bytes.
template <typename T>
DEQ_DEVICE Slot gather_slot(const T* from, int size) {
  Slot slot = {};
  DEQ_UNROLL
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    if (i >= size) {
      continue;
    }
    const T value = from[i];
    if constexpr (sizeof(T) == 2) {
      slot.words[i / 2] |= static_cast<uint32_t>(value.bits) << (16 * (i % 2));
    } else {
      memcpy(slot.words + i * static_cast<int>(sizeof(T) / 4), &value, sizeof(value));
    }
  }
  return slot;
}

template <typename T>
DEQ_DEVICE bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(T) == 0;
}

// Packs are moved by instructions that need addresses aligned to their width. A host takes any, so
// that the emulator has to look.
template <typename pack_t>
DEQ_DEVICE void need_alignment([[maybe_unused]] const void* p) {
#ifndef __CUDACC__
  if (!is_aligned<pack_t>(p)) {
    throw std::runtime_error("a pack must lie where its address is aligned to its width");
  }
#endif
}

#ifdef __CUDACC__
// The instruction that moves so many bytes at once.
template <int bytes>
using Word = std::conditional_t<
    bytes % 16 == 0, uint4,
    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;
#endif

template <typename pack_t>
DEQ_DEVICE pack_t load_pack(const void* from) {
  need_alignment<pack_t>(from);
  pack_t pack;
#ifdef __CUDACC__
  using word_t = Word<sizeof(pack_t)>;
  constexpr int kWords = sizeof(pack_t) / sizeof(word_t);
  word_t words[kWords];
  DEQ_UNROLL
  for (int i = 0; i < kWords; ++i) {
    words[i] = static_cast<const word_t*>(from)[i];
  }
  memcpy(&pack, words, sizeof(pack));
#else
  memcpy(&pack, from, sizeof(pack));
#endif
  return pack;
}

template <typename pack_t>
DEQ_DEVICE void store_pack(const pack_t& pack, void* to) {
  need_alignment<pack_t>(to);
#ifdef __CUDACC__
  using word_t = Word<sizeof(pack_t)>;
  constexpr int kWords = sizeof(pack_t) / sizeof(word_t);
  word_t words[kWords];
  memcpy(words, &pack, sizeof(pack));
  DEQ_UNROLL
  for (int i = 0; i < kWords; ++i) {
    static_cast<word_t*>(to)[i] = words[i];
  }
#else
  memcpy(to, &pack, sizeof(pack));
#endif
}

// The first element of a thread's vector number `segment` in a tile.
template <int kVector, typename Block>
DEQ_DEVICE int item_begin(const Block& block, int segment) {
  return (segment * kGpuThreads + block.thread()) * kVector;
}

// This thread's elements of a tile of `size` elements that begins at `from`; zero beyond its end.
template <int kVector, typename Block, typename T, typename accum_t>
DEQ_DEVICE void load_items(const Block& block, const T* from, int size, accum_t (&out)[kGpuItems]) {
  using pack_t = Pack<T, kVector>;
  const bool aligned = is_aligned<pack_t>(from);
  DEQ_UNROLL
  for (int s = 0; s < kGpuItems / kVector; ++s) {
    const int i = item_begin<kVector>(block, s);
    accum_t* const items = out + s * kVector;
    if (aligned && i + kVector <= size) {
      const pack_t pack = load_pack<pack_t>(from + i);
      DEQ_UNROLL
      for (int v = 0; v < kVector; ++v) {
        items[v] = widen(pack.values[v]);
      }
    } else {
      DEQ_UNROLL
      for (int v = 0; v < kVector; ++v) {
        items[v] = i + v < size ? static_cast<accum_t>(widen(from[i + v])) : accum_t(0);
      }
    }
  }
}

// r = f(z) - z for this thread's elements; leaves f(z) and z as well. z and r may be one array.
template <int kVector, typename Block, typename T, typename accum_t>
DEQ_DEVICE void load_residual(const Block& block, const T* f_tile, const T* z_tile, int size,
                              accum_t (&f)[kGpuItems], accum_t (&z)[kGpuItems],
                              accum_t (&r)[kGpuItems]) {
  load_items<kVector>(block, f_tile, size, f);
  load_items<kVector>(block, z_tile, size, z);
  DEQ_UNROLL
  for (int i = 0; i < kGpuItems; ++i) {
    r[i] = f[i] - z[i];
  }
}

// Stores this thread's elements; they are left as they were stored, after rounding.
template <int kVector, typename Block, typename T, typename accum_t>
DEQ_DEVICE void store_items(const Block& block, accum_t (&items)[kGpuItems], int size, T* to) {
  using pack_t = Pack<T, kVector>;
  const bool aligned = is_aligned<pack_t>(to);
  DEQ_UNROLL
  for (int s = 0; s < kGpuItems / kVector; ++s) {
    const int i = item_begin<kVector>(block, s);
    pack_t pack;
    DEQ_UNROLL
    for (int v = 0; v < kVector; ++v) {
      narrow(items[s * kVector + v], &pack.values[v]);
      items[s * kVector + v] = widen(pack.values[v]);
    }
    if (aligned && i + kVector <= size) {
      store_pack(pack, to + i);
    } else {
      DEQ_UNROLL
      for (int v = 0; v < kVector; ++v) {
        if (i + v < size) {
          to[i + v] = pack.values[v];
        }
      }
    }
  }
}

// The sums over a warp of `count` values per thread. The lanes share them out while they add: lane
// l returns the sum of value l / (32 / count). Each sum is the same tree over the lanes, whatever
// the count.
template <int count, int mask = kGpuWarp / 2, typename Block, typename T>
DEQ_DEVICE T sum_over_warp(const Block& block, const T (&values)[count]) {
  if constexpr (count > 1) {
    const bool upper = (block.lane() & mask) != 0;
    T halves[count / 2];
    DEQ_UNROLL
    for (int i = 0; i < count / 2; ++i) {
      const T own = upper ? values[i + count / 2] : values[i];
      const T given = upper ? values[i] : values[i + count / 2];
      halves[i] = own + block.shuffle_xor(given, mask);
    }
    return sum_over_warp<count / 2, mask / 2>(block, halves);
  } else {
    T sum = values[0];
    DEQ_UNROLL
    for (int m = mask; m > 0; m /= 2) {
      sum += block.shuffle_xor(sum, m);
    }
    return sum;
  }
}

// Where a pass leaves the sums of one tile: value i at to[i * stride].
struct TileSums {
  double* to;
  int64_t stride;

  DEQ_DEVICE TileSums from(int64_t value) const { return {to + value * stride, stride}; }
};

// Sums over a tile are taken in two stages: a warp at a time into a row of `flush`
// [kGpuWarps, kFlushValues], then, after a barrier, the warps in order.
template <typename Block>
DEQ_DEVICE void add_warps(const Block& block, const double* flush, int place, int count,
                          const TileSums& sums) {
  for (int i = block.thread(); i < count; i += kGpuThreads) {
    double sum = 0.0;
    DEQ_UNROLL
    for (int warp = 0; warp < kGpuWarps; ++warp) {
      sum += flush[warp * kFlushValues + place + i];
    }
    sums.to[i * sums.stride] = sum;
  }
}

// The first stage for `count` values per thread that have places of their own behind the rows'
// dots.
template <int count, typename Block>
DEQ_DEVICE void put_own_sums(const Block& block, const double (&values)[count], double* flush) {
  const double sum = sum_over_warp(block, values);
  constexpr int lanes_each = kGpuWarp / count;
  if (block.lane() % lanes_each == 0) {
    flush[block.warp() * kFlushValues + kFlushedDots + block.lane() / lanes_each] = sum;
  }
}

// The second stage, after the dots of `rows` rows have brought barriers with them, or none.
template <typename Block>
DEQ_DEVICE void add_own_sums(const Block& block, int rows, int count, const double* flush,
                             const TileSums& sums) {
  if (rows == 0) {
    block.sync();
  }
  add_warps(block, flush, kFlushedDots, count, sums);
  block.sync();
}

// ||a||^2 and ||b||^2 of this tile, in double so that no float32 state overflows them.
template <typename Block, typename accum_t>
DEQ_DEVICE void put_norms(const Block& block, const accum_t (&a)[kGpuItems],
                          const accum_t (&b)[kGpuItems], double* flush) {
  double norms[2] = {};
  DEQ_UNROLL
  for (int i = 0; i < kGpuItems; ++i) {
    const double a_i = static_cast<double>(a[i]);
    const double b_i = static_cast<double>(b[i]);
    norms[0] = multiply_add(a_i, a_i, norms[0]);
    norms[1] = multiply_add(b_i, b_i, norms[1]);
  }
  put_own_sums(block, norms, flush);
}

}  // namespace deq
