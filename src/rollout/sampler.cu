// Draws a token from each row of logits without sorting it. A block for each row; masses are integers, so that their
// sums are exact in any order.

// As `SamplingConfig` of the Rust side; what is off has the value named there.
struct Sampling {
    float temperature, top_p, min_p;
    uint32_t top_k;
};

// Mass of the most likely token. The sum over a vocabulary stays far below 2^64.
const float UNIT = 35184372088832.0f; // 2^45

__device__ inline uint64_t mass_of(float p) {
    return (uint64_t)(p * UNIT);
}

// Orders floats as unsigned integers.
__device__ inline uint32_t key_of(float x) {
    uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Which tokens may be drawn: those with a larger key, and the first `ties` of those that have it.
struct Threshold {
    uint32_t key;
    uint64_t ties;
};

// What the passes over a row share.
struct Row {
    const float *z;
    uint32_t size;
    float temperature, most;
    __device__ float score(uint32_t i) const { return z[i] / temperature; }
    __device__ float weight(uint32_t i) const { return expf(score(i) - most); }
};

const int SAMPLE_THREADS = 1024;
const int DIGIT = 8, BINS = 1 << DIGIT;

// The least threshold that keeps `wanted`: a count of tokens (with all that are tied with the last), or a mass (with as
// few of the tied as reach it); of those that `limit` leaves. Digit by digit of the keys, from the highest.
template <bool BY_MASS> __device__ Threshold select(const Row &row, Threshold limit, uint64_t wanted) {
    __shared__ unsigned long long counts[BINS], masses[BINS];
    __shared__ uint32_t chosen;
    __shared__ uint64_t left;
    uint32_t prefix = 0;
    for (int shift = 32 - DIGIT; shift >= 0; shift -= DIGIT) {
        for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) counts[bin] = masses[bin] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < row.size; i += blockDim.x) {
            uint32_t key = key_of(row.score(i));
            if (key < limit.key) continue;
            if (shift < 32 - DIGIT && key >> (shift + DIGIT) != prefix) continue;
            int bin = key >> shift & (BINS - 1);
            atomicAdd(&counts[bin], 1ull);
            if (BY_MASS) atomicAdd(&masses[bin], (unsigned long long)mass_of(row.weight(i)));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t rest = wanted;
            int bin = BINS - 1;
            for (; bin > 0; bin--) {
                uint64_t here = BY_MASS ? masses[bin] : counts[bin];
                if (here >= rest && counts[bin] > 0) break;
                rest -= here < rest ? here : rest;
            }
            chosen = bin;
            left = rest;
        }
        __syncthreads();
        prefix = prefix << DIGIT | chosen;
        wanted = left;
        __syncthreads();
    }
    Threshold found = {prefix, counts[chosen]};
    if (BY_MASS) {
        // All tied tokens have one mass.
        uint64_t each = counts[chosen] ? masses[chosen] / counts[chosen] : 0;
        found.ties = each ? (wanted + each - 1) / each : 1;
        if (found.ties == 0) found.ties = 1;
        if (found.ties > counts[chosen]) found.ties = counts[chosen];
    }
    __syncthreads();
    return found;
}

// The sum of the values of the threads before this one.
__device__ inline uint64_t sum_before(uint64_t own) {
    __shared__ uint64_t parts[SAMPLE_THREADS];
    parts[threadIdx.x] = own;
    __syncthreads();
    uint64_t before = 0;
    for (unsigned thread = 0; thread < threadIdx.x; thread++) before += parts[thread];
    __syncthreads();
    return before;
}

// Successive tokens of a row, those of one thread; of the tied ones the first `room` are kept.
struct Share {
    const Row &row;
    Threshold limit;
    uint32_t first, end;
    uint64_t room;

    __device__ Share(const Row &row, Threshold limit) : row(row), limit(limit), room(0) {
        uint32_t share = (row.size + blockDim.x - 1) / blockDim.x;
        first = threadIdx.x * share < row.size ? threadIdx.x * share : row.size;
        end = first + share < row.size ? first + share : row.size;
        uint64_t tied = 0;
        for (uint32_t i = first; i < end; i++) tied += key_of(row.score(i)) == limit.key;
        uint64_t before = sum_before(tied);
        if (before < limit.ties) room = limit.ties - before;
    }

    // Sum of the masses of the kept tokens up to the first at which it exceeds `target`, which is then `found`.
    __device__ uint64_t sum(uint64_t target, uint32_t &found) const {
        uint64_t mass = 0, left = room;
        for (uint32_t i = first; i < end; i++) {
            uint32_t key = key_of(row.score(i));
            if (key < limit.key || (key == limit.key && left == 0)) continue;
            left -= key == limit.key;
            mass += mass_of(row.weight(i));
            if (mass > target) {
                found = i;
                break;
            }
        }
        return mass;
    }
};

// The token of a row at `draw`: the first at which the mass of the tokens so far exceeds that share of the whole.
__device__ inline uint32_t draw_token(const Row &row, Threshold limit, double draw) {
    __shared__ uint32_t token;
    if (threadIdx.x == 0) token = ~0u;
    Share share(row, limit);
    uint32_t found = ~0u;
    uint64_t own = share.sum(~0ull, found), total = block_reduce<Sum>(own), before = sum_before(own);
    uint64_t target = (uint64_t)(draw * (double)total);
    if (target >= total) target = total - 1;
    if (target >= before && target < before + own) {
        share.sum(target - before, found);
        token = found;
    }
    __syncthreads();
    return token;
}

// Row r of scores (logits, penalised where there is a penalty) -> ids[r], drawn at draws[r] in (0, 1), and its log-prob
// in the whole distribution of z, in nats; an id of ~0 where z holds a NaN or nothing finite. Temperature 0: the most
// likely token, the first of equals. Top-k, top-p and min-p in turn, each on the tokens that the one before left.
KERNEL(sample, (Mat z, Mat scores, const double *draws, Sampling sampling, uint32_t *ids, float *logprobs)) {
    const float *logits = row_of<float>(z, blockIdx.x);
    bool greedy = sampling.temperature <= 0.0f;
    float temperature = greedy ? 1.0f : sampling.temperature;
    float lse = row_stats(logits, z.cols, temperature).lse;
    Row row = {row_of<float>(scores, blockIdx.x), z.cols, temperature, -INFINITY};
    for (uint32_t i = threadIdx.x; i < row.size; i += blockDim.x) row.most = fmaxf(row.most, row.score(i));
    row.most = block_reduce<Max>(row.most);
    uint32_t token = ~0u;
    // Neither NaN nor infinite; the same for all threads.
    if (lse - lse == 0.0f) {
        Threshold limit = {0, ~0ull};
        if (greedy) {
            limit = {key_of(row.most), 1};
        } else {
            if (sampling.top_k > 0 && sampling.top_k < row.size) limit = select<false>(row, limit, sampling.top_k);
            if (sampling.top_p < 1.0f) {
                uint64_t mass = 0;
                for (uint32_t i = threadIdx.x; i < row.size; i += blockDim.x)
                    if (key_of(row.score(i)) >= limit.key) mass += mass_of(row.weight(i));
                uint64_t wanted = (uint64_t)((double)sampling.top_p * (double)block_reduce<Sum>(mass));
                limit = select<true>(row, limit, wanted > 0 ? wanted : 1);
            }
            uint32_t least = key_of(row.most + logf(sampling.min_p));
            if (sampling.min_p > 0.0f && least > limit.key) limit = {least, ~0ull};
        }
        token = draw_token(row, limit, draws[blockIdx.x]);
    }
    if (threadIdx.x > 0) return;
    ids[blockIdx.x] = token;
    logprobs[blockIdx.x] = token == ~0u ? 0.0f : logits[token] / temperature - lse;
}

// scores = z with the logits of tokens that occurred already divided by `penalty` where positive, multiplied where not.
// Tokens starts[r]..starts[r + 1] of `seen` belong to row r and are distinct. Grid: a block for each row.
KERNEL(penalize, (Mat z, Mat scores, const uint32_t *starts, const uint32_t *seen, float penalty)) {
    const float *from = row_of<float>(z, blockIdx.x);
    float *to = row_of<float>(scores, blockIdx.x);
    for (uint32_t i = threadIdx.x; i < z.cols; i += blockDim.x) to[i] = from[i];
    __syncthreads();
    for (uint32_t i = starts[blockIdx.x] + threadIdx.x; i < starts[blockIdx.x + 1]; i += blockDim.x) {
        float logit = from[seen[i]];
        to[seen[i]] = logit > 0.0f ? logit / penalty : logit * penalty;
    }
}
