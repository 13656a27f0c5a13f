/* The passes over memory between the matrix products of a decoder, each fused into one.
 *
 * Rows lie end to end without padding: [tokens, width], fp32. A family is a prompt with the responses that follow it:
 * segments first[f] .. first[f + 1] - 1, of which the others attend to all of the first one and, causally, to
 * themselves. Every output is computed by one thread in a fixed order: the number of threads changes no bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
#define CHUNK 64 /* rows of a partial sum over rows */

static inline float fast_exp(float x) { /* Cephes' expf: relative error below 1e-7 between -87 and 88, cut there */
  float clipped = x < -87.0f ? -87.0f : x;
  clipped = clipped > 88.0f ? 88.0f : clipped;
  float shifted = clipped * 1.44269504088896341f + 12582912.0f; /* the nearest integer, in the low bits */
  float n = shifted - 12582912.0f;
  float r = clipped - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union { float f; int32_t i; } bits = {.f = shifted}, scale;
  scale.i = (int32_t)((uint32_t)(bits.i + 127) << 23);
  return p * scale.f;
}

/* normalisation: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps) */
void rms_norm(const float *x, const float *weight, float *y, float *rstd, int64_t rows, int64_t width, float eps,
              int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 16)
  for (int64_t i = 0; i < rows; i++) {
    const float *a = x + i * width;
    float *b = y + i * width, sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += a[j] * a[j];
    float r = 1.0f / sqrtf(sum / width + eps);
    if (rstd) rstd[i] = r;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) b[j] = a[j] * r * weight[j];
  }
}

/* dx = rstd (dy w - x rstd^2 mean(dy w x)) + add; partial[c] = sum over chunk c's rows of dy x rstd */
void rms_norm_backward(const float *dy, const float *x, const float *rstd, const float *weight, const float *add,
                       float *dx, float *partial, int64_t rows, int64_t width, int threads) {
  int64_t chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && chunks > 1)
  for (int64_t c = 0; c < chunks; c++) {
    float *w = partial + c * width;
    memset(w, 0, width * sizeof(float));
    int64_t end = (c + 1) * CHUNK < rows ? (c + 1) * CHUNK : rows;
    for (int64_t i = c * CHUNK; i < end; i++) {
      const float *g = dy + i * width, *a = x + i * width, *more = add ? add + i * width : NULL;
      float *d = dx + i * width, r = rstd[i], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < width; j++) dot += g[j] * weight[j] * a[j];
      float scale = dot * r * r * r / width;
      if (more) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) d[j] = g[j] * weight[j] * r - a[j] * scale + more[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) d[j] = g[j] * weight[j] * r - a[j] * scale;
      }
#pragma omp simd
      for (int64_t j = 0; j < width; j++) w[j] += g[j] * a[j] * r;
    }
  }
}

/* out = silu(gate) * up of rows [gate | up] */
void swiglu(const float *gate_up, float *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 16)
  for (int64_t i = 0; i < rows; i++) {
    const float *g = gate_up + 2 * i * width, *u = g + width;
    float *o = out + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) o[j] = g[j] * u[j] / (1.0f + fast_exp(-g[j]));
  }
}

/* gate_up becomes its gradient; out = silu(gate) * up again, for the gradient of the weights that read it */
void swiglu_backward(float *gate_up, const float *dout, float *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 16)
  for (int64_t i = 0; i < rows; i++) {
    float *g = gate_up + 2 * i * width, *u = g + width, *o = out + i * width;
    const float *d = dout + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) {
      float s = 1.0f / (1.0f + fast_exp(-g[j])), silu = g[j] * s, up = u[j];
      o[j] = silu * up;
      u[j] = d[j] * silu;
      g[j] = d[j] * up * s * (1.0f + g[j] * (1.0f - s));
    }
  }
}

/* rotary positions of the first `heads` heads of each row, in place; sign -1 turns back. cos, sin [positions, dim] */
void rotate(float *x, const int32_t *positions, const float *cosines, const float *sines, int64_t rows, int64_t width,
            int heads, int dim, float sign, int threads) {
  int half = dim / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 16)
  for (int64_t i = 0; i < rows; i++) {
    const float *c = cosines + (int64_t)positions[i] * dim, *s = sines + (int64_t)positions[i] * dim;
    for (int h = 0; h < heads; h++) {
      float *a = x + i * width + h * dim, *b = a + half;
#pragma omp simd
      for (int j = 0; j < half; j++) {
        float p = a[j], q = b[j], t = sign * s[j];
        a[j] = p * c[j] - q * t;
        b[j] = q * c[j] + p * t;
      }
    }
  }
}

/* small matrix products: C[M, N] (+)= A[M, K] B[K, N]; A has strides ai, ak; N is a multiple of 8 */
#define TILE(R, C_)                                                                                       \
  static inline void tile_##R##_##C_(int K, const float *A, int64_t ai, int64_t ak, const float *B, int64_t bk, \
                                     float *C, int64_t ci, int acc) {                                     \
    v8 sum[R][C_];                                                                                        \
    for (int i = 0; i < R; i++)                                                                           \
      for (int n = 0; n < C_; n++) sum[i][n] = acc ? *(const v8 *)(C + i * ci + 8 * n) : (v8){0};         \
    for (int k = 0; k < K; k++) {                                                                         \
      v8 b[C_];                                                                                           \
      for (int n = 0; n < C_; n++) b[n] = *(const v8 *)(B + k * bk + 8 * n);                              \
      for (int i = 0; i < R; i++) {                                                                       \
        float a = A[i * ai + k * ak];                                                                     \
        for (int n = 0; n < C_; n++) sum[i][n] += a * b[n];                                               \
      }                                                                                                   \
    }                                                                                                     \
    for (int i = 0; i < R; i++)                                                                           \
      for (int n = 0; n < C_; n++) *(v8 *)(C + i * ci + 8 * n) = sum[i][n];                               \
  }
#define TILES(C_) TILE(1, C_) TILE(2, C_) TILE(3, C_) TILE(4, C_) TILE(5, C_) TILE(6, C_)
TILES(1)
TILES(2)

static inline void tiles(int rows, int wide, int K, const float *A, int64_t ai, int64_t ak, const float *B, int64_t bk,
                         float *C, int64_t ci, int acc) {
#define CASE(R)                                                                  \
  case R:                                                                        \
    if (wide) tile_##R##_2(K, A, ai, ak, B, bk, C, ci, acc);                     \
    else tile_##R##_1(K, A, ai, ak, B, bk, C, ci, acc);                          \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

static void product(int M, int N, int K, const float *A, int64_t ai, int64_t ak, const float *B, int64_t bk, float *C,
                    int64_t ci, int acc) {
  for (int n = 0; n < N; n += 16) {
    int wide = N - n >= 16;
    for (int i = 0; i < M; i += 6)
      tiles(M - i < 6 ? M - i : 6, wide, K, A + i * ai, ai, ak, B + n, bk, C + i * ci + n, ci, acc);
  }
}

static void transpose(const float *x, int64_t stride, int rows, int dim, float *out, int64_t out_stride) {
  for (int j = 0; j < rows; j++)
    for (int d = 0; d < dim; d++) out[d * out_stride + j] = x[j * stride + d];
}

#define PANEL 48 /* queries at a time */
static inline int padded(int n) { return (n + 15) & ~15; }

typedef struct {
  const int32_t *first;  /* [families + 1] segments of each family */
  const int32_t *start;  /* [segments] first row */
  const int32_t *length; /* [segments] rows */
  const int32_t *skip;   /* [segments] queries that nobody reads, at the segment's start */
  int32_t families, heads, kv_heads, dim, longest; /* longest: keys that a query may see */
} Families;

/* probs [n, stride] of queries i0 .. i0 + n - 1 against prefix and own keys (transposed), and their log-sum-exp */
static void probabilities(const float *q, int64_t width, int n, int dim, const float *keys, int64_t stride, int prefix,
                          int i0, float scale, float *probs, float *lse, int64_t lse_stride, int known) {
  int reach = padded(prefix + i0 + n);
  product(n, reach, dim, q, width, 1, keys, stride, probs, stride, 0);
  for (int i = 0; i < n; i++) {
    float *p = probs + i * stride;
    int count = prefix + i0 + i + 1;
    if (known) {
      float log_sum = lse[i * lse_stride];
#pragma omp simd
      for (int j = 0; j < count; j++) p[j] = fast_exp(p[j] * scale - log_sum);
    } else {
      float top = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : top)
      for (int j = 0; j < count; j++) top = p[j] > top ? p[j] : top;
      top *= scale;
#pragma omp simd reduction(+ : sum)
      for (int j = 0; j < count; j++) sum += p[j] = fast_exp(p[j] * scale - top);
      lse[i * lse_stride] = top + logf(sum);
      float share = 1.0f / sum;
#pragma omp simd
      for (int j = 0; j < count; j++) p[j] *= share;
    }
    for (int j = count; j < reach; j++) p[j] = 0.0f;
  }
}

/* out [rows, heads * dim], lse [rows, heads]; qkv [rows, (heads + 2 kv_heads) * dim], rotated */
int attention(const float *qkv, float *out, float *lse, const Families *f, int threads) {
  int dim = f->dim, group = f->heads / f->kv_heads, failed = 0;
  int64_t width = (int64_t)(f->heads + 2 * f->kv_heads) * dim, out_width = (int64_t)f->heads * dim;
  int64_t stride = padded(f->longest) + 16;
  float scale = 1.0f / sqrtf((float)dim);
#pragma omp parallel num_threads(threads) if (threads > 1 && f->families > 1)
  {
    float *keys = malloc(sizeof(float) * stride * (dim + PANEL)), *probs = keys + stride * dim;
    if (!keys) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int family = 0; family < f->families; family++)
      for (int kv = 0; kv < f->kv_heads; kv++) {
        if (!keys) continue;
        int root = f->first[family], prefix = 0;
        const float *k = qkv + (f->heads + kv) * dim, *v = k + f->kv_heads * dim;
        const float *root_v = v + f->start[root] * width;
        memset(keys, 0, sizeof(float) * stride * dim);
        for (int s = root; s < f->first[family + 1]; s++) {
          int64_t start = f->start[s];
          int length = f->length[s];
          const float *own_v = v + start * width;
          transpose(k + start * width, width, length, dim, keys + prefix, stride);
          for (int h = kv * group; h < (kv + 1) * group; h++)
            for (int i0 = f->skip[s]; i0 < length; i0 += PANEL) {
              int n = length - i0 < PANEL ? length - i0 : PANEL;
              float *o = out + (start + i0) * out_width + h * dim;
              probabilities(qkv + (start + i0) * width + h * dim, width, n, dim, keys, stride, prefix, i0, scale, probs,
                            lse + (start + i0) * f->heads + h, f->heads, 0);
              if (prefix) product(n, dim, prefix, probs, stride, 1, root_v, width, o, out_width, 0);
              product(n, dim, i0 + n, probs + prefix, stride, 1, own_v, width, o, out_width, prefix > 0);
            }
          if (s == root) prefix = f->first[family + 1] - root > 1 ? length : 0;
        }
      }
    free(keys);
  }
  return failed;
}

/* dqkv from dout; only queries past `skip` have a gradient, and rows of `out`, `dout`, `lse` */
int attention_backward(const float *qkv, const float *out, const float *dout, const float *lse, float *dqkv,
                       const Families *f, int threads) {
  int dim = f->dim, group = f->heads / f->kv_heads, failed = 0;
  int64_t width = (int64_t)(f->heads + 2 * f->kv_heads) * dim, out_width = (int64_t)f->heads * dim;
  int64_t stride = padded(f->longest) + 16;
  float scale = 1.0f / sqrtf((float)dim);
#pragma omp parallel num_threads(threads) if (threads > 1 && f->families > 1)
  {
    float *keys = malloc(sizeof(float) * stride * (2 * dim + 2 * PANEL));
    float *values = keys + stride * dim, *probs = values + stride * dim, *ds = probs + stride * PANEL;
    if (!keys) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int family = 0; family < f->families; family++)
      for (int kv = 0; kv < f->kv_heads; kv++) {
        if (!keys) continue;
        int root = f->first[family], prefix = 0;
        int64_t root_start = f->start[root];
        const float *k = qkv + (f->heads + kv) * dim, *v = k + f->kv_heads * dim;
        float *dk = dqkv + (f->heads + kv) * dim, *dv = dk + f->kv_heads * dim;
        memset(keys, 0, sizeof(float) * stride * 2 * dim);
        for (int s = root; s < f->first[family + 1]; s++) {
          int64_t start = f->start[s];
          int length = f->length[s];
          for (int j = 0; j < length; j++) {
            memset(dk + (start + j) * width, 0, sizeof(float) * dim);
            memset(dv + (start + j) * width, 0, sizeof(float) * dim);
          }
          transpose(k + start * width, width, length, dim, keys + prefix, stride);
          transpose(v + start * width, width, length, dim, values + prefix, stride);
          for (int h = kv * group; h < (kv + 1) * group; h++) {
            for (int i = 0; i < f->skip[s]; i++) memset(dqkv + (start + i) * width + h * dim, 0, sizeof(float) * dim);
            for (int i0 = f->skip[s]; i0 < length; i0 += PANEL) {
              int n = length - i0 < PANEL ? length - i0 : PANEL, own = i0 + n, reach = padded(prefix + own);
              const float *q = qkv + (start + i0) * width + h * dim;
              const float *o = out + (start + i0) * out_width + h * dim, *d = dout + (start + i0) * out_width + h * dim;
              float *dq = dqkv + (start + i0) * width + h * dim;
              probabilities(q, width, n, dim, keys, stride, prefix, i0, scale, probs,
                            (float *)lse + (start + i0) * f->heads + h, f->heads, 1);
              product(n, reach, dim, d, out_width, 1, values, stride, ds, stride, 0);
              for (int i = 0; i < n; i++) {
                float dot = 0.0f, *a = ds + i * stride, *p = probs + i * stride;
#pragma omp simd reduction(+ : dot)
                for (int j = 0; j < dim; j++) dot += o[i * out_width + j] * d[i * out_width + j];
#pragma omp simd
                for (int j = 0; j < reach; j++) a[j] = p[j] * (a[j] - dot) * scale;
              }
              if (prefix) {
                product(n, dim, prefix, ds, stride, 1, k + root_start * width, width, dq, width, 0);
                product(prefix, dim, n, ds, 1, stride, q, width, dk + root_start * width, width, 1);
                product(prefix, dim, n, probs, 1, stride, d, out_width, dv + root_start * width, width, 1);
              }
              product(n, dim, own, ds + prefix, stride, 1, k + start * width, width, dq, width, prefix > 0);
              product(own, dim, n, ds + prefix, 1, stride, q, width, dk + start * width, width, 1);
              product(own, dim, n, probs + prefix, 1, stride, d, out_width, dv + start * width, width, 1);
            }
          }
          if (s == root) prefix = f->first[family + 1] - root > 1 ? length : 0;
        }
      }
    free(keys);
  }
  return failed;
}

/* logprobs[i] = logits[i, target] - logsumexp(logits[i]) over tokens that are not forbidden; lse for the gradient */
void pick_logprobs(const float *logits, const uint8_t *forbidden, const int64_t *targets, float *logprobs, float *lse,
                   int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 8)
  for (int64_t i = 0; i < rows; i++) {
    const float *z = logits + i * vocabulary;
    float top = -INFINITY, sum = 0.0f;
    if (forbidden) {
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < vocabulary; j++) top = !forbidden[j] && z[j] > top ? z[j] : top;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < vocabulary; j++) sum += forbidden[j] ? 0.0f : fast_exp(z[j] - top);
    } else {
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < vocabulary; j++) top = z[j] > top ? z[j] : top;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < vocabulary; j++) sum += fast_exp(z[j] - top);
    }
    lse[i] = top + logf(sum);
    logprobs[i] = forbidden && forbidden[targets[i]] ? -INFINITY : z[targets[i]] - lse[i];
  }
}

/* logits become grad * (one_hot(target) - softmax); 0 where forbidden */
void pick_logprobs_backward(float *logits, const uint8_t *forbidden, const int64_t *targets, const float *lse,
                            const float *grad, int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 8)
  for (int64_t i = 0; i < rows; i++) {
    float *z = logits + i * vocabulary, g = -grad[i], shift = lse[i];
    if (forbidden) {
#pragma omp simd
      for (int64_t j = 0; j < vocabulary; j++) z[j] = forbidden[j] ? 0.0f : g * fast_exp(z[j] - shift);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < vocabulary; j++) z[j] = g * fast_exp(z[j] - shift);
    }
    z[targets[i]] += grad[i];
  }
}
