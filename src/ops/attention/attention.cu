// Attention over packed segments, flash-style (Dao, arXiv:2307.08691): scores live in registers, a block of 4 warps takes
// 64 rows (a row is one head of one query), a warp 16 of them. Heads of queries that share a head of keys stand side by
// side in a block. The products of a warp are tiles of 16 x 8: for bf16 one instruction of the tensor cores and 16 of
// the depth, for float plain multiply-adds on the same layout.
//
// A query's keys are one list: its prefix, then its own segment. The sums over it run in steps of 32 keys from its
// start, whatever other queries stand in the block: decoding and training give the same bits.

const int ATTENTION_THREADS = 128;
const int ROWS = 64;      // of a block: queries x heads, or keys in the backward pass of keys
const int WARP_ROWS = 16; // of a warp
const int STEP = 32;      // keys of a step, or query rows in the backward pass of keys
// Between rows of shared memory, so that the 8 rows of a tile lie in different banks.
template <class T> struct Pad {
    static const int VALUES = 16 / sizeof(T);
};

// A thread's part of a 16 x 8 tile: rows g and g + 8, columns 2t and 2t + 1, with g = lane / 4 and t = lane % 4.
struct Place {
    int warp, g, t;
    __device__ Place() : warp(threadIdx.x / WARP), g(threadIdx.x % WARP / 4), t(threadIdx.x % 4) {}
    // The row of the block that element i of a tile belongs to, and its column in tile n.
    __device__ int row(int i) const { return warp * WARP_ROWS + g + i / 2 * 8; }
    __device__ int column(int n, int i) const { return n * 8 + 2 * t + i % 2; }
};

#ifdef CANDLEWICK_EMULATION
// The tensor core's product of a 16 x 16 and a 16 x 8 tile, from the layout of its registers.
inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Registers {
        uint32_t a[4], b[2];
    };
    unsigned first = threadIdx.x - threadIdx.x % WARP;
    unsigned turn = emulation::hand(Registers{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    auto half = [](uint32_t pair, int i) { return __bfloat162float({(uint16_t)(pair >> (16 * i))}); };
    Place at;
    for (int i = 0; i < 4; i++) {
        float sum = 0;
        // Pair of columns `pair` of a, and of rows of b: in the registers of thread `pair % 4` of each group of four.
        for (int pair = 0; pair < 8; pair++) {
            Registers left = emulation::take<Registers>(first + at.g * 4 + pair % 4, turn);
            Registers right = emulation::take<Registers>(first + (2 * at.t + i % 2) * 4 + pair % 4, turn);
            uint32_t x = left.a[i / 2 + pair / 4 * 2], y = right.b[pair / 4];
            sum += half(x, 0) * half(y, 0) + half(x, 1) * half(y, 1);
        }
        c[i] += sum;
    }
}
#else
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ inline uint32_t pair_at(const bf16 *x) { return *(const uint32_t *)x; }
__device__ inline uint32_t pair_of(bf16 low, bf16 high) {
    union {
        bf16 halves[2];
        uint32_t pair;
    } x;
    x.halves[0] = low;
    x.halves[1] = high;
    return x.pair;
}

// c[n] += a b for N tiles side by side; a is [16, depth] in shared memory, b is [8 N, depth] or, with BY_DEPTH,
// [depth, 8 N].
template <bool BY_DEPTH, int N>
__device__ void product(float (&c)[N][4], const bf16 *a, int a_stride, const bf16 *b, int b_stride, int depth) {
    Place at;
    for (int k = 0; k < depth; k += 16) {
        const bf16 *low = a + at.g * a_stride + k + 2 * at.t, *high = low + 8 * a_stride;
        uint32_t pairs[4] = {pair_at(low), pair_at(high), pair_at(low + 8), pair_at(high + 8)};
#pragma unroll
        for (int n = 0; n < N; n++) {
            uint32_t other[2];
            if (BY_DEPTH) {
                const bf16 *p = b + (k + 2 * at.t) * b_stride + n * 8 + at.g;
                other[0] = pair_of(p[0], p[b_stride]);
                other[1] = pair_of(p[8 * b_stride], p[9 * b_stride]);
            } else {
                const bf16 *p = b + (n * 8 + at.g) * b_stride + k + 2 * at.t;
                other[0] = pair_at(p);
                other[1] = pair_at(p + 8);
            }
            mma_16x8x16(c[n], pairs, other);
        }
    }
}

template <bool BY_DEPTH, int N>
__device__ void product(float (&c)[N][4], const float *a, int a_stride, const float *b, int b_stride, int depth) {
    Place at;
    for (int k = 0; k < depth; k++) {
        float low = a[at.g * a_stride + k], high = a[(at.g + 8) * a_stride + k];
#pragma unroll
        for (int n = 0; n < N; n++) {
            int column = n * 8 + 2 * at.t;
            float left = BY_DEPTH ? b[k * b_stride + column] : b[column * b_stride + k];
            float right = BY_DEPTH ? b[k * b_stride + column + 1] : b[(column + 1) * b_stride + k];
            c[n][0] = fmaf(low, left, c[n][0]);
            c[n][1] = fmaf(low, right, c[n][1]);
            c[n][2] = fmaf(high, left, c[n][2]);
            c[n][3] = fmaf(high, right, c[n][3]);
        }
    }
}

// Copies rows of `width` values to shared memory, filled with zeros to [ROWS_OF, E]; source(row) is null for none.
template <int ROWS_OF, int E, class T, class Source>
__device__ void load_rows(T *to, int width, Source source) {
    // 16 bytes at a time where rows allow it.
    const int N = 16 / sizeof(T), STRIDE = E + Pad<T>::VALUES;
    for (int i = threadIdx.x; i < ROWS_OF * (E / N); i += ATTENTION_THREADS) {
        int row = i / (E / N), column = i % (E / N) * N;
        const T *from = source(row);
        Values<T, N> some;
        if (from && column + N <= width && (uintptr_t)(from + column) % 16 == 0) {
            some = *(const Values<T, N> *)(from + column);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) some.of[j] = from && column + j < width ? from[column + j] : from_float<T>(0);
        }
        *(Values<T, N> *)(to + row * STRIDE + column) = some;
    }
}

// Joins a value with those of the other three threads that hold the same row of a tile.
template <class Op> __device__ float row_reduce(float x) {
    x = Op::join(x, __shfl_xor_sync(~0u, x, 1));
    return Op::join(x, __shfl_xor_sync(~0u, x, 2));
}

// Successive queries with one prefix and one start; the first sees `seen` keys, the next one more each.
struct QueryTile {
    uint32_t query, queries, prefix, prefix_len, own, seen;
    __device__ size_t key_row(int key) const {
        return key < (int)prefix_len ? prefix + key : own + (key - prefix_len);
    }
    __device__ int keys() const { return seen + queries - 1; }
};

// What the rows of a block of queries are.
struct QueryRows {
    QueryTile tile;
    int group, kv_head, width;
    __device__ bool has(int row) const { return row < (int)tile.queries * group; }
    __device__ size_t query(int row) const { return tile.query + row / group; }
    __device__ int head(int row) const { return kv_head * group + row % group; }
    __device__ int seen(int row) const { return tile.seen + row / group; }
    template <class T> __device__ T *at(const Mat &m, int row) const {
        return has(row) ? row_of<T>(m, query(row)) + (size_t)head(row) * width : nullptr;
    }
    // Key (or value) number `key` of those that the tile sees.
    template <class T> __device__ T *key(const Mat &m, int key) const {
        return key < tile.keys() ? row_of<T>(m, tile.key_row(key)) + (size_t)kv_head * width : nullptr;
    }
};

struct AttentionShape {
    uint32_t group, width; // heads of queries a head of keys; values of a head
    float scale;
};

template <class T, int E> struct ForwardShared {
    T q[ROWS * (E + Pad<T>::VALUES)];
    T k[STEP * (E + Pad<T>::VALUES)];
    T v[STEP * (E + Pad<T>::VALUES)];
    T p[ROWS * (STEP + Pad<T>::VALUES)];
};

// y = softmax(q k^T scale) v and the logsumexp of the scores, [N, heads].
// Grid: (tiles, heads of keys). E is the width of a head, rounded up.
template <class T, int E>
__device__ void attention_forward(Mat q, Mat k, Mat v, Mat y, float *lse, const QueryTile *tiles, AttentionShape shape) {
    const int STRIDE = E + Pad<T>::VALUES, P_STRIDE = STEP + Pad<T>::VALUES;
    DYNAMIC_SHARED(memory);
    ForwardShared<T, E> &s = *(ForwardShared<T, E> *)memory;
    const int width = shape.width;
    QueryRows rows = {tiles[blockIdx.x], (int)shape.group, (int)blockIdx.y, width};
    Place at;
    bool works = rows.has(at.warp * WARP_ROWS);
    load_rows<ROWS, E>(s.q, width, [&](int row) { return rows.at<T>(q, row); });
    float out[E / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    int keys = rows.tile.keys();
    for (int start = 0; start < keys; start += STEP) {
        __syncthreads();
        load_rows<STEP, E>(s.k, width, [&](int row) { return rows.key<T>(k, start + row); });
        load_rows<STEP, E>(s.v, width, [&](int row) { return rows.key<T>(v, start + row); });
        __syncthreads();
        if (!works) continue;
        float scores[STEP / 8][4] = {};
        product<false>(scores, s.q + at.warp * WARP_ROWS * STRIDE, STRIDE, s.k, STRIDE, E);
        float largest[2] = {-INFINITY, -INFINITY}, added[2] = {0, 0}, shrink[2], shift[2];
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool sees = start + at.column(n, i) < rows.seen(at.row(i));
                scores[n][i] = sees ? scores[n][i] * shape.scale : -INFINITY;
                largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float now = fmaxf(most[half], row_reduce<Max>(largest[half]));
            // The first step holds a key of every row, so nothing is infinite but before it.
            shrink[half] = most[half] == -INFINITY ? 0.0f : expf(most[half] - now);
            shift[half] = most[half] = now;
        }
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float p = expf(scores[n][i] - shift[i / 2]);
                added[i / 2] += p;
                s.p[at.row(i) * P_STRIDE + at.column(n, i)] = from_float<T>(p);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) sum[half] = sum[half] * shrink[half] + row_reduce<Sum>(added[half]);
#pragma unroll
        for (int n = 0; n < E / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[n][i] *= shrink[i / 2];
        __syncwarp();
        product<true>(out, s.p + at.warp * WARP_ROWS * P_STRIDE, P_STRIDE, s.v, STRIDE, STEP);
        __syncwarp();
    }
    if (!works) return;
#pragma unroll
    for (int n = 0; n < E / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            T *to = rows.at<T>(y, at.row(i));
            if (to && at.column(n, i) < width) to[at.column(n, i)] = from_float<T>(out[n][i] / sum[i / 2]);
        }
    for (int half = 0; half < 2; half++) {
        int row = at.row(2 * half);
        if (lse && at.t == 0 && rows.has(row)) {
            lse[rows.query(row) * (k.cols / width) * rows.group + rows.head(row)] = most[half] + logf(sum[half]);
        }
    }
}

// delta [N, heads]: the inner product of each head of g with that of y. A warp for each.
template <class T> __device__ void attention_delta(Mat g, Mat y, float *delta, uint32_t width) {
    uint32_t heads = y.cols / width;
    size_t item = thread_of_grid() / WARP;
    if (item >= (size_t)y.rows * heads) return;
    const T *a = row_of<T>(g, item / heads) + item % heads * width, *b = row_of<T>(y, item / heads) + item % heads * width;
    float sum = 0;
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) sum += to_float(a[i]) * to_float(b[i]);
    for (int lane = WARP / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % WARP == 0) delta[item] = sum;
}

template <class T, int E> struct BackwardQueryShared {
    T q[ROWS * (E + Pad<T>::VALUES)];
    T g[ROWS * (E + Pad<T>::VALUES)];
    T k[STEP * (E + Pad<T>::VALUES)];
    T v[STEP * (E + Pad<T>::VALUES)];
    T ds[ROWS * (STEP + Pad<T>::VALUES)];
};

// dq = dS k, with dS = P (g v^T - delta) scale. Grid: (tiles, heads of keys).
template <class T, int E>
__device__ void attention_backward_queries(Mat q, Mat k, Mat v, Mat g, Mat dq, const float *lse, const float *delta,
                                           const QueryTile *tiles, AttentionShape shape) {
    const int STRIDE = E + Pad<T>::VALUES, P_STRIDE = STEP + Pad<T>::VALUES;
    DYNAMIC_SHARED(memory);
    BackwardQueryShared<T, E> &s = *(BackwardQueryShared<T, E> *)memory;
    const int width = shape.width;
    QueryRows rows = {tiles[blockIdx.x], (int)shape.group, (int)blockIdx.y, width};
    size_t heads = k.cols / width * rows.group;
    Place at;
    bool works = rows.has(at.warp * WARP_ROWS);
    load_rows<ROWS, E>(s.q, width, [&](int row) { return rows.at<T>(q, row); });
    load_rows<ROWS, E>(s.g, width, [&](int row) { return rows.at<T>(g, row); });
    float out[E / 8][4] = {}, row_lse[2] = {0, 0}, row_delta[2] = {0, 0};
    for (int half = 0; half < 2; half++) {
        int row = at.row(2 * half);
        if (!rows.has(row)) continue;
        row_lse[half] = lse[rows.query(row) * heads + rows.head(row)];
        row_delta[half] = delta[rows.query(row) * heads + rows.head(row)];
    }
    int keys = rows.tile.keys();
    for (int start = 0; start < keys; start += STEP) {
        __syncthreads();
        load_rows<STEP, E>(s.k, width, [&](int row) { return rows.key<T>(k, start + row); });
        load_rows<STEP, E>(s.v, width, [&](int row) { return rows.key<T>(v, start + row); });
        __syncthreads();
        if (!works) continue;
        float scores[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
        product<false>(scores, s.q + at.warp * WARP_ROWS * STRIDE, STRIDE, s.k, STRIDE, E);
        product<false>(dp, s.g + at.warp * WARP_ROWS * STRIDE, STRIDE, s.v, STRIDE, E);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool sees = rows.has(at.row(i)) && start + at.column(n, i) < rows.seen(at.row(i));
                float p = sees ? expf(scores[n][i] * shape.scale - row_lse[i / 2]) : 0.0f;
                float ds = p * (dp[n][i] - row_delta[i / 2]) * shape.scale;
                s.ds[at.row(i) * P_STRIDE + at.column(n, i)] = from_float<T>(ds);
            }
        __syncwarp();
        product<true>(out, s.ds + at.warp * WARP_ROWS * P_STRIDE, P_STRIDE, s.k, STRIDE, STEP);
        __syncwarp();
    }
    if (!works) return;
#pragma unroll
    for (int n = 0; n < E / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            T *to = rows.at<T>(dq, at.row(i));
            if (to && at.column(n, i) < width) to[at.column(n, i)] = from_float<T>(out[n][i]);
        }
}

// Successive keys and the range of queries among which those that see them are.
struct KeyTile {
    uint32_t key, keys, first_query, end_query;
};

// The keys that a query sees: prefix..prefix + prefix_len, and own..=itself.
struct Sight {
    uint32_t prefix, prefix_len, own;
    __device__ bool sees(uint32_t query, uint32_t key) const {
        return (key >= prefix && key - prefix < prefix_len) || (key >= own && key <= query);
    }
};

template <class T, int E> struct BackwardKeyShared {
    T k[ROWS * (E + Pad<T>::VALUES)];
    T v[ROWS * (E + Pad<T>::VALUES)];
    T q[STEP * (E + Pad<T>::VALUES)];
    T g[STEP * (E + Pad<T>::VALUES)];
    T p[ROWS * (STEP + Pad<T>::VALUES)];
    float lse[STEP], delta[STEP];
    Sight sight[STEP];
};

// dk = dS^T q and dv = P^T g, summed over the heads of queries that share the head of keys and over the queries in
// order. Grid: (tiles of keys, heads of keys).
template <class T, int E>
__device__ void attention_backward_keys(Mat q, Mat k, Mat v, Mat g, Mat dk, Mat dv, const float *lse, const float *delta,
                                        const KeyTile *tiles, const Sight *sights, AttentionShape shape) {
    const int STRIDE = E + Pad<T>::VALUES, P_STRIDE = STEP + Pad<T>::VALUES;
    DYNAMIC_SHARED(memory);
    BackwardKeyShared<T, E> &s = *(BackwardKeyShared<T, E> *)memory;
    const int width = shape.width, group = shape.group;
    KeyTile tile = tiles[blockIdx.x];
    size_t kv_column = (size_t)blockIdx.y * width, heads = k.cols / width * group;
    Place at;
    auto key = [&](const Mat &m, int row) -> T * {
        return row < (int)tile.keys ? row_of<T>(m, tile.key + row) + kv_column : nullptr;
    };
    load_rows<ROWS, E>(s.k, width, [&](int row) { return key(k, row); });
    load_rows<ROWS, E>(s.v, width, [&](int row) { return key(v, row); });
    bool works = at.warp * WARP_ROWS < (int)tile.keys;
    float out_k[E / 8][4] = {}, out_v[E / 8][4] = {};
    // Whole queries a step, with all their heads.
    const uint32_t queries = STEP / group;
    for (uint32_t first = tile.first_query; first < tile.end_query; first += queries) {
        auto query = [&](int row) { return first + row / group; };
        auto has = [&](int row) { return row < (int)queries * group && query(row) < tile.end_query; };
        auto head = [&](int row) { return (int)blockIdx.y * group + row % group; };
        auto at_query = [&](const Mat &m, int row) -> T * {
            return has(row) ? row_of<T>(m, query(row)) + (size_t)head(row) * width : nullptr;
        };
        __syncthreads();
        load_rows<STEP, E>(s.q, width, [&](int row) { return at_query(q, row); });
        load_rows<STEP, E>(s.g, width, [&](int row) { return at_query(g, row); });
        if (threadIdx.x < STEP) {
            int row = threadIdx.x;
            s.lse[row] = has(row) ? lse[query(row) * heads + head(row)] : 0.0f;
            s.delta[row] = has(row) ? delta[query(row) * heads + head(row)] : 0.0f;
            s.sight[row] = has(row) ? sights[query(row)] : Sight{0, 0, ~0u};
        }
        __syncthreads();
        if (!works) continue;
        float p[STEP / 8][4] = {}, ds[STEP / 8][4] = {};
        product<false>(p, s.k + at.warp * WARP_ROWS * STRIDE, STRIDE, s.q, STRIDE, E);
        product<false>(ds, s.v + at.warp * WARP_ROWS * STRIDE, STRIDE, s.g, STRIDE, E);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = at.column(n, i);
                bool sees = at.row(i) < (int)tile.keys && s.sight[row].sees(query(row), tile.key + at.row(i));
                p[n][i] = sees ? expf(p[n][i] * shape.scale - s.lse[row]) : 0.0f;
                ds[n][i] = p[n][i] * (ds[n][i] - s.delta[row]) * shape.scale;
                s.p[at.row(i) * P_STRIDE + row] = from_float<T>(p[n][i]);
            }
        T *own = s.p + at.warp * WARP_ROWS * P_STRIDE;
        __syncwarp();
        product<true>(out_v, own, P_STRIDE, s.g, STRIDE, STEP);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s.p[at.row(i) * P_STRIDE + at.column(n, i)] = from_float<T>(ds[n][i]);
        __syncwarp();
        product<true>(out_k, own, P_STRIDE, s.q, STRIDE, STEP);
        __syncwarp();
    }
    if (!works) return;
#pragma unroll
    for (int n = 0; n < E / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = at.column(n, i);
            if (at.row(i) >= (int)tile.keys || column >= width) continue;
            key(dk, at.row(i))[column] = from_float<T>(out_k[n][i]);
            key(dv, at.row(i))[column] = from_float<T>(out_v[n][i]);
        }
}

#define ATTENTION_KERNEL(name, type, suffix, E, params, args)                                                          \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) name##_##E##_##suffix params {                     \
        name<type, E> args;                                                                                            \
    }                                                                                                                  \
    EXPORT(name##_##E##_##suffix)
#define ATTENTION_KERNELS(E)                                                                                           \
    ATTENTION_TYPE(float, f32, E)                                                                                      \
    ATTENTION_TYPE(bf16, bf16, E)
#define ATTENTION_TYPE(type, suffix, E)                                                                                \
    ATTENTION_KERNEL(attention_forward, type, suffix, E,                                                               \
                     (Mat q, Mat k, Mat v, Mat y, float *lse, const QueryTile *tiles, AttentionShape shape),           \
                     (q, k, v, y, lse, tiles, shape))                                                                  \
    ATTENTION_KERNEL(attention_backward_queries, type, suffix, E,                                                      \
                     (Mat q, Mat k, Mat v, Mat g, Mat dq, const float *lse, const float *delta,                        \
                      const QueryTile *tiles, AttentionShape shape),                                                   \
                     (q, k, v, g, dq, lse, delta, tiles, shape))                                                       \
    ATTENTION_KERNEL(attention_backward_keys, type, suffix, E,                                                         \
                     (Mat q, Mat k, Mat v, Mat g, Mat dk, Mat dv, const float *lse, const float *delta,                \
                      const KeyTile *tiles, const Sight *sights, AttentionShape shape),                                \
                     (q, k, v, g, dk, dv, lse, delta, tiles, sights, shape))

ATTENTION_KERNELS(32)
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)
ATTENTION_KERNELS(256)
KERNELS(attention_delta, (Mat g, Mat y, float *delta, uint32_t width), (g, y, delta, width))
