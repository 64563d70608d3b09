// What all kernels share. Compiled by nvcc for a GPU; the unit tests compile the same files with the C++ compiler of the
// machine, on top of `emulation.h`, and run them thread by thread.
//
// A kernel is written once for the element type T (float or bf16) of values and activations; sums and gradients of
// weights are f32. All sums have a fixed order: the same inputs give the same bits.
#pragma once

#ifdef CANDLEWICK_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define EXPORT(name)
#endif

typedef __nv_bfloat16 bf16;

// A matrix of rows whose first values lie `stride` apart; as the Rust side lays it out.
struct Mat {
    void *data;
    uint32_t rows, cols;
    uint64_t stride;
};

const int MOST_THREADS = 1024; // of a block

// The kernels `name_f32` and `name_bf16` from a function template `name<T>`.
#define KERNELS(name, params, args)                                                                                    \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) name##_f32 params { name<float> args; }                 \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) name##_bf16 params { name<bf16> args; }                 \
    EXPORT(name##_f32) EXPORT(name##_bf16)

// A kernel whose types are fixed; its body follows.
#define KERNEL(name, params)                                                                                           \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) name params;                                            \
    EXPORT(name)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) name params

template <class T> __device__ inline T *row_of(const Mat &m, size_t row) {
    return (T *)m.data + row * m.stride;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <class T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }

// Columns of a row, shared out among the threads of all blocks with this blockIdx.x, which is the row.
#define FOR_COLUMNS(column, cols)                                                                                      \
    for (size_t column = (size_t)blockIdx.y * blockDim.x + threadIdx.x; column < (cols);                               \
         column += (size_t)gridDim.y * blockDim.x)

// N successive values, read or written at once.
template <class T, int N> struct alignas(N * sizeof(T)) Values {
    T of[N];
};

template <int N, int IN, int OUT, class T, class F>
__device__ inline void map_values(size_t column, const T *const (&in)[IN], T *const (&out)[OUT], F f) {
    Values<T, N> given[IN], made[OUT];
#pragma unroll
    for (int i = 0; i < IN; i++) given[i] = *(const Values<T, N> *)(in[i] + column);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float x[IN], y[OUT];
#pragma unroll
        for (int i = 0; i < IN; i++) x[i] = to_float(given[i].of[n]);
        f(x, y);
#pragma unroll
        for (int i = 0; i < OUT; i++) made[i].of[n] = from_float<T>(y[i]);
    }
#pragma unroll
    for (int i = 0; i < OUT; i++) *(Values<T, N> *)(out[i] + column) = made[i];
}

// Calls f(x, y) for each column of a row: x holds the column's value of each row of `in`, what it writes to y goes to the
// rows `out`, which may be among `in`. Columns are shared out as in FOR_COLUMNS, but 16 bytes at a time where all rows
// lie so.
template <int IN, int OUT, class T, class F>
__device__ void map_columns(size_t cols, const T *const (&in)[IN], T *const (&out)[OUT], F f) {
    const int N = 16 / sizeof(T);
    bool whole = cols % N == 0;
    for (int i = 0; i < IN; i++) whole &= (uintptr_t)in[i] % 16 == 0;
    for (int i = 0; i < OUT; i++) whole &= (uintptr_t)out[i] % 16 == 0;
    if (whole) {
        FOR_COLUMNS(some, cols / N) map_values<N>(some * N, in, out, f);
    } else {
        FOR_COLUMNS(column, cols) map_values<1>(column, in, out, f);
    }
}

// What map_columns calls for a copy.
struct Same {
    __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0]; }
};

// Number of this thread among those of the grid, and how many there are: for loops over elements.
__device__ inline size_t thread_of_grid() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline size_t threads_of_grid() { return (size_t)gridDim.x * blockDim.x; }

const int WARP = 32;

struct Sum {
    template <class V> __device__ static V join(V a, V b) { return a + b; }
};
struct Max {
    template <class V> __device__ static V join(V a, V b) { return a > b ? a : b; }
};

// Joins a value of all threads of the block; every thread gets the result. The tree is the same in every block.
template <class Op, class V> __device__ V block_reduce(V value) {
    __shared__ V parts[WARP];
    for (int lane = WARP / 2; lane > 0; lane /= 2) value = Op::join(value, __shfl_xor_sync(~0u, value, lane));
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    value = parts[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) value = Op::join(value, parts[warp]);
    // The next call writes to the same place.
    __syncthreads();
    return value;
}
