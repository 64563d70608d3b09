// CUDA on the CPU, as far as the kernels of this project need it: a block's threads are fibers on one thread, blocks run
// one after the other. For the tests alone: it is slow, and it sees only what a correct program may rely on. A thread
// runs until it waits for others; whoever waits goes on when all of its block (or warp) wait, too.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// One block runs at a time.
#define __shared__ static
#define DYNAMIC_SHARED(name) unsigned char *name = emulation::dynamic_shared()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

enum class Waits { No, Warp, Block };

// Bytes that a thread can hand to the others of its warp at a time.
const size_t HANDED = 32;
const size_t STACK = 128 * 1024;

struct Fiber {
    ucontext_t context; // to start it; later changes go through `place`, which costs no system call
    jmp_buf place;
    bool started;
    Waits waits;
    bool done;
};

struct Block {
    dim3 grid, block, index;
    std::vector<Fiber> fibers;
    std::vector<std::vector<char>> stacks;
    std::vector<unsigned char> shared;
    // What the threads of a warp hand each other, in turn in the first half and in the second.
    std::vector<unsigned char> exchange;
    std::vector<unsigned> turns;
    unsigned current;
    uint64_t random;
    jmp_buf scheduler;
    void (*body)(void *);
    void *argument;
};

inline Block &state() {
    static Block block;
    return block;
}

inline unsigned char *dynamic_shared() {
    return state().shared.data();
}

inline void wait(Waits waits) {
    Block &b = state();
    Fiber &fiber = b.fibers[b.current];
    fiber.waits = waits;
    if (!_setjmp(fiber.place)) _longjmp(b.scheduler, 1);
}

inline void fiber_main() {
    Block &b = state();
    b.body(b.argument);
    b.fibers[b.current].done = true;
    _longjmp(b.scheduler, 1);
}

inline void fail(const char *what) {
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

// Lets those go on whose whole block or warp waits.
inline bool release() {
    Block &b = state();
    unsigned threads = b.fibers.size();
    bool any = false, all_block = true;
    for (Fiber &f : b.fibers) all_block &= f.done || f.waits == Waits::Block;
    for (unsigned warp = 0; warp < threads; warp += 32) {
        unsigned end = warp + 32 < threads ? warp + 32 : threads;
        bool all_warp = true;
        for (unsigned t = warp; t < end; t++) all_warp &= b.fibers[t].done || b.fibers[t].waits == Waits::Warp;
        for (unsigned t = warp; t < end; t++) {
            Fiber &f = b.fibers[t];
            if (f.done || !(all_block || all_warp)) continue;
            f.waits = Waits::No;
            any = true;
        }
    }
    return any;
}

inline void run_block() {
    Block &b = state();
    unsigned threads = b.block.x;
    b.fibers.resize(threads);
    b.stacks.resize(threads);
    b.exchange.assign(2 * threads * HANDED, 0);
    b.turns.assign(threads, 0);
    // What a kernel does not write it must not read.
    memset(b.shared.data(), 0xff, b.shared.size());
    for (unsigned t = 0; t < threads; t++) {
        Fiber &f = b.fibers[t];
        b.stacks[t].resize(STACK);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = b.stacks[t].data();
        f.context.uc_stack.ss_size = b.stacks[t].size();
        f.context.uc_link = nullptr;
        f.waits = Waits::No;
        f.done = f.started = false;
        makecontext(&f.context, fiber_main, 0);
    }
    for (;;) {
        bool alive = false;
        // Now forward, now backward, at random: results must not depend on who comes first.
        b.random = b.random * 6364136223846793005u + 1442695040888963407u;
        bool backward = b.random >> 63;
        for (unsigned i = 0; i < threads; i++) {
            unsigned t = backward ? threads - 1 - i : i;
            Fiber &f = b.fibers[t];
            if (f.done) continue;
            alive = true;
            if (f.waits != Waits::No) continue;
            b.current = t;
            if (_setjmp(b.scheduler)) continue;
            if (f.started) _longjmp(f.place, 1);
            f.started = true;
            setcontext(&f.context);
        }
        if (!alive) return;
        bool ended = true;
        for (Fiber &f : b.fibers) ended &= f.done;
        if (!ended && !release()) fail("threads wait for each other at different places");
    }
}

// Runs body(argument) as every thread of every block.
inline void launch(const unsigned *grid, unsigned threads, unsigned shared, void (*body)(void *), void *argument) {
    Block &b = state();
    b.grid.x = grid[0], b.grid.y = grid[1], b.grid.z = grid[2];
    b.block.x = threads;
    b.shared.resize(shared + 16);
    b.body = body;
    b.argument = argument;
    for (b.index.z = 0; b.index.z < grid[2]; b.index.z++)
        for (b.index.y = 0; b.index.y < grid[1]; b.index.y++)
            for (b.index.x = 0; b.index.x < grid[0]; b.index.x++) run_block();
}

// Calls a kernel with arguments given as the CUDA driver takes them: an address for each.
template <class... A> struct Caller {
    void (*kernel)(A...);
    void **arguments;
    template <size_t... I> void call(std::index_sequence<I...>) { kernel(*(A *)arguments[I]...); }
    static void body(void *self) { ((Caller *)self)->call(std::index_sequence_for<A...>()); }
};

template <class... A>
void run(void (*kernel)(A...), const unsigned *grid, unsigned threads, unsigned shared, void **arguments) {
    Caller<A...> caller{kernel, arguments};
    launch(grid, threads, shared, Caller<A...>::body, &caller);
}

// Hands a value to the other threads of the warp; `take` gives that of any of them until the next call.
template <class V> unsigned hand(const V &value) {
    static_assert(sizeof(V) <= HANDED, "too large to hand over");
    Block &b = state();
    unsigned turn = b.turns[b.current]++ % 2;
    memcpy(b.exchange.data() + (2 * b.current + turn) * HANDED, &value, sizeof(V));
    wait(Waits::Warp);
    return turn;
}

template <class V> V take(unsigned thread, unsigned turn) {
    V value;
    memcpy(&value, state().exchange.data() + (2 * thread + turn) * HANDED, sizeof(V));
    return value;
}

// The value of another thread of the warp.
template <class V> V exchange(V value, unsigned source) {
    return take<V>(source, hand(value));
}

} // namespace emulation

#define EXPORT(name)                                                                                                   \
    extern "C" void emulated_##name(const unsigned *grid, unsigned threads, unsigned shared, void **arguments) {       \
        emulation::run(name, grid, threads, shared, arguments);                                                        \
    }

struct ThreadIndex {
    operator dim3() const { return {emulation::state().current, 0, 0}; }
    struct X {
        operator unsigned() const { return emulation::state().current; }
    } x;
};
static ThreadIndex threadIdx;
#define blockIdx (emulation::state().index)
#define blockDim (emulation::state().block)
#define gridDim (emulation::state().grid)

inline void __syncthreads() {
    emulation::wait(emulation::Waits::Block);
}
inline void __syncwarp() {
    emulation::wait(emulation::Waits::Warp);
}
template <class V> V __shfl_xor_sync(unsigned, V value, unsigned lanes) {
    return emulation::exchange(value, emulation::state().current ^ lanes);
}
template <class V> V __shfl_sync(unsigned, V value, unsigned lane) {
    unsigned self = emulation::state().current;
    return emulation::exchange(value, self - self % 32 + lane);
}
template <class V, class W> V atomicAdd(V *at, W value) {
    V before = *at;
    *at += value;
    return before;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
// Rounds to the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

struct __half {
    uint16_t bits;
};
inline float __half2float(__half x) {
    int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                 : exponent == 0 ? ldexpf(mantissa, -24)
                                 : ldexpf(1024 + mantissa, exponent - 25);
    return x.bits >> 15 ? -size : size;
}
