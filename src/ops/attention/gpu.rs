//! Attention on a GPU: how the work is cut into blocks of `attention.cu`.

use super::{Context, Heads, runs};
use crate::ops::gpu::{Gpu, Launch, Plain, Pointer, Shared, arg};
use crate::ops::storage::unset;
use candle_core::{DType, Result, Tensor, bail};

const THREADS: u32 = 128;
/// Rows of a block, keys of a step, rows of a warp, as in `attention.cu`.
const ROWS: usize = 64;
const STEP: usize = 32;
/// The widths of a head that there are kernels for.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];

/// Successive queries with one prefix and one start; the first sees `seen` keys, the next one more each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct QueryTile {
    query: u32,
    queries: u32,
    prefix: u32,
    prefix_len: u32,
    own: u32,
    seen: u32,
}

/// Successive keys and the range of queries among which those that see them are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct KeyTile {
    key: u32,
    keys: u32,
    first_query: u32,
    end_query: u32,
}

/// The keys that a query of a packed batch sees: the prefix, and its own segment from `own` to itself.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Sight {
    prefix: u32,
    prefix_len: u32,
    own: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Shape {
    group: u32,
    width: u32,
    scale: f32,
}

// SAFETY: numbers of four bytes, laid out as in C.
unsafe impl Plain for QueryTile {}
// SAFETY: as above.
unsafe impl Plain for KeyTile {}
// SAFETY: as above.
unsafe impl Plain for Sight {}
// SAFETY: as above.
unsafe impl Plain for Shape {}

/// What the kernels are told about the contexts of a batch; one group size only, that of the model.
#[derive(Debug, Default)]
pub(super) struct Plan {
    queries: Shared,
    keys: Shared,
    sights: Shared,
}

impl Plan {
    /// The queries are on the GPU already: [`query_words`] of each.
    pub fn given(queries: Pointer) -> Self {
        Self { queries: Shared::given(queries), ..Self::default() }
    }
}

/// Words that tell the kernels about a query.
pub(crate) const QUERY_WORDS: usize = size_of::<QueryTile>() / size_of::<u32>();

/// What the kernels are told about query `query` where each is a tile of its own.
pub(crate) fn query_words(query: usize, context: &Context) -> [u32; QUERY_WORDS] {
    let QueryTile { query, queries, prefix, prefix_len, own, seen } = query_tile(query, 1, context);
    [query, queries, prefix, prefix_len, own, seen]
}

fn query_tile(query: usize, queries: usize, context: &Context) -> QueryTile {
    let Context { prefix, own } = context;
    QueryTile {
        query: query as u32,
        queries: queries as u32,
        prefix: prefix.start as u32,
        prefix_len: prefix.len() as u32,
        own: own.start as u32,
        seen: (prefix.len() + own.len()) as u32,
    }
}

impl Heads {
    fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    fn shape(&self) -> Shape {
        Shape { group: self.group() as u32, width: self.head_dim as u32, scale: self.scale() }
    }
}

/// The kernel for a type and a width of heads, and its width.
fn kernel(name: &str, dtype: DType, heads: Heads) -> Result<(String, usize)> {
    let Some(width) = WIDTHS.into_iter().find(|width| heads.head_dim <= *width) else {
        bail!("attention on a GPU: heads of {} values, at most {} are supported", heads.head_dim, WIDTHS[3]);
    };
    if heads.group() > STEP {
        bail!("attention on a GPU: {} heads share keys, at most {STEP} are supported", heads.group());
    }
    let dtype = match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        other => bail!("attention on a GPU: values of type {other:?}"),
    };
    Ok((format!("{name}_{width}_{dtype}"), width))
}

/// Bytes of shared memory for rows of a width and for `floats` more, with the padding of `attention.cu`.
fn shared(rows: usize, width: usize, floats: usize, dtype: DType) -> u32 {
    let size = dtype.size_in_bytes();
    let padding = 16 / size;
    let tiles = rows * (width + padding) + ROWS * (STEP + padding);
    (tiles * size + 4 * floats) as u32
}

fn query_tiles(contexts: &[Context], heads: Heads) -> Vec<QueryTile> {
    let tile = |rows: std::ops::Range<usize>| query_tile(rows.start, rows.len(), &contexts[rows.start]);
    runs(contexts, ROWS / heads.group()).into_iter().map(tile).collect()
}

/// The contexts are those of a packed batch: a query's own keys end with itself.
fn key_tiles(contexts: &[Context]) -> Vec<KeyTile> {
    let tile = |key: usize| {
        let keys = ROWS.min(contexts.len() - key);
        KeyTile { key: key as u32, keys: keys as u32, first_query: u32::MAX, end_query: 0 }
    };
    let mut tiles: Vec<KeyTile> = (0..contexts.len()).step_by(ROWS).map(tile).collect();
    for (query, context) in contexts.iter().enumerate() {
        for keys in [&context.prefix, &context.own].into_iter().filter(|keys| !keys.is_empty()) {
            for tile in &mut tiles[keys.start / ROWS..=(keys.end - 1) / ROWS] {
                tile.first_query = tile.first_query.min(query as u32);
                tile.end_query = tile.end_query.max(query as u32 + 1);
            }
        }
    }
    tiles
}

fn sights(contexts: &[Context]) -> Vec<Sight> {
    let sight = |context: &Context| Sight {
        prefix: context.prefix.start as u32,
        prefix_len: context.prefix.len() as u32,
        own: context.own.start as u32,
    };
    contexts.iter().map(sight).collect()
}

/// Where the tiles are, and how many.
fn plan_queries(gpu: &Gpu, plan: &Plan, contexts: &[Context], heads: Heads) -> Result<(Pointer, usize)> {
    let count = runs(contexts, ROWS / heads.group()).len();
    Ok((plan.queries.of(gpu, || query_tiles(contexts, heads))?, count))
}

/// [`attention`](super::attention()) into `y`, and with `lse` the logsumexp of each query's scores, `[N, H]`.
pub(super) fn forward(
    gpu: &Gpu,
    [q, k, v, y]: [&Tensor; 4],
    lse: Pointer,
    (contexts, plan): (&[Context], &Plan),
    heads: Heads,
) -> Result<()> {
    let (kernel, width) = kernel("attention_forward", q.dtype(), heads)?;
    let (tiles, count) = plan_queries(gpu, plan, contexts, heads)?;
    let launch = Launch {
        blocks: [count as u32, heads.num_kv_heads as u32, 1],
        threads: THREADS,
        shared: shared(ROWS + 2 * STEP, width, 0, q.dtype()),
    };
    let (q, k, v, y, shape) = (gpu.view(q)?, gpu.view(k)?, gpu.view(v)?, gpu.view(y)?, heads.shape());
    let args = [arg(&q.matrix), arg(&k.matrix), arg(&v.matrix), arg(&y.matrix), arg(&lse), arg(&tiles), arg(&shape)];
    gpu.launch(&kernel, launch, &args)
}

/// [`attention_backward`](super::attention_backward()) into the columns `dqkv` of queries, keys and values. The result
/// of the forward pass is computed again, with what the gradient needs of the scores.
pub(super) fn backward(
    gpu: &Gpu,
    g: &Tensor,
    [q, k, v]: [&Tensor; 3],
    [dq, dk, dv]: [&Tensor; 3],
    (contexts, plan): (&[Context], &Plan),
    heads: Heads,
) -> Result<()> {
    let (n, dtype) = (q.dim(0)?, q.dtype());
    let y = unset(n, heads.q_width(), q)?;
    let (lse, delta) = (gpu.buffer::<f32>(n * heads.num_heads)?, gpu.buffer::<f32>(n * heads.num_heads)?);
    let (lse, delta) = (lse.pointer(), delta.pointer());
    forward(gpu, [q, k, v, &y], lse, (contexts, plan), heads)?;
    let (q, k, v, g, y) = (gpu.view(q)?, gpu.view(k)?, gpu.view(v)?, gpu.view(g)?, gpu.view(&y)?);
    let (dq, dk, dv) = (gpu.view(dq)?, gpu.view(dk)?, gpu.view(dv)?);
    let (shape, head_dim) = (heads.shape(), heads.head_dim as u32);
    let warps = (n * heads.num_heads).div_ceil(THREADS as usize / 32);
    let launch = Launch { blocks: [warps as u32, 1, 1], threads: THREADS, shared: 0 };
    let name = crate::ops::gpu::kernel("attention_delta", dtype)?;
    gpu.launch(&name, launch, &[arg(&g.matrix), arg(&y.matrix), arg(&delta), arg(&head_dim)])?;

    let (name, width) = kernel("attention_backward_queries", dtype, heads)?;
    let (tiles, count) = plan_queries(gpu, plan, contexts, heads)?;
    let launch = |blocks: usize, rows: usize, floats: usize| Launch {
        blocks: [blocks as u32, heads.num_kv_heads as u32, 1],
        threads: THREADS,
        shared: shared(rows, width, floats, dtype),
    };
    let args = [
        arg(&q.matrix),
        arg(&k.matrix),
        arg(&v.matrix),
        arg(&g.matrix),
        arg(&dq.matrix),
        arg(&lse),
        arg(&delta),
        arg(&tiles),
        arg(&shape),
    ];
    gpu.launch(&name, launch(count, 2 * ROWS + 2 * STEP, 0), &args)?;

    let (name, _) = kernel("attention_backward_keys", dtype, heads)?;
    let tiles = plan.keys.of(gpu, || key_tiles(contexts))?;
    let sights = plan.sights.of(gpu, || sights(contexts))?;
    let args = [
        arg(&q.matrix),
        arg(&k.matrix),
        arg(&v.matrix),
        arg(&g.matrix),
        arg(&dk.matrix),
        arg(&dv.matrix),
        arg(&lse),
        arg(&delta),
        arg(&tiles),
        arg(&sights),
        arg(&shape),
    ];
    // The kernel keeps five numbers of each query row beside the tiles.
    gpu.launch(&name, launch(n.div_ceil(ROWS), 2 * ROWS + 2 * STEP, 5 * STEP), &args)
}
