/* Sampling from a decoder without leaving C: each thread serves its own rows, refills a finished row's place at once,
 * and computes an equal prompt once. Weights come packed in panels of 16 outputs: [outputs / 16][inputs][16].
 */
#include "kernels.c"

typedef struct {
  const float **attention_norm, **qkv, **qkv_bias, **out, **mlp_norm, **gate_up, **down; /* one entry a layer */
  const float *embed, *norm, *head, *cosines, *sines;
  int32_t layers, width, inner, heads, kv_heads, dim, vocabulary;
  float eps;
} Model;

typedef struct {
  const int64_t *tokens;          /* prompts end to end */
  const int64_t *start, *length;  /* [prompts] */
  const int32_t *first_row;       /* [prompts + 1] rows first_row[p] .. first_row[p + 1] - 1 answer prompt p */
  const double *uniforms;         /* [rows, limit], or NULL: the most likely token */
  const uint8_t *forbidden;       /* [vocabulary] or NULL */
  const int64_t *ends;            /* [end_count] tokens that end a response */
  int64_t *response;              /* [rows, limit] */
  float *logprobs;                /* [rows, limit] */
  int64_t *lengths;               /* [rows] */
  uint8_t *ended;                 /* [rows] */
  int32_t prompts, limit, end_count, longest, slots;
} Request;

TILE(1, 4)
TILE(1, 8)

/* y[M, N] (+)= a[M, K] w, w packed, N a multiple of 16 */
static void linear(int M, int N, int K, const float *a, int64_t lda, const float *w, float *y, int64_t ldy, int acc) {
  for (int n = 0; n < N; n += 16, w += 16 * (int64_t)K)
    for (int i = 0; i < M; i += 6)
      tiles(M - i < 6 ? M - i : 6, 1, K, a + i * lda, lda, 1, w, 16, y + i * ldy + n, ldy, acc);
}

/* one row times a matrix [K, N]: enough accumulators to keep the units busy; N a multiple of 8 */
static void row_product(int N, int K, const float *a, const float *b, int64_t bk, float *c) {
  int n = 0;
  for (; n + 64 <= N; n += 64) tile_1_8(K, a, 0, 1, b + n, bk, c + n, 0, 0);
  for (; n + 32 <= N; n += 32) tile_1_4(K, a, 0, 1, b + n, bk, c + n, 0, 0);
  for (; n + 8 <= N; n += 8) tile_1_1(K, a, 0, 1, b + n, bk, c + n, 0, 0);
}

typedef struct {
  const Model *m;
  int64_t positions; /* of the cache, a multiple of 16 */
  int64_t per_layer; /* floats of one row's keys (as many of its values) in one layer */
  float *x, *h, *qkv, *mixed, *gate_up, *act, *probs, *logits, *lse;
} Work;

/* keys lie transposed, [kv head][dim][position], values [kv head][position][dim] */
static float *keys_of(const Work *w, float *cache, int layer) { return cache + 2 * layer * w->per_layer; }
static float *values_of(const Work *w, float *cache, int layer) { return keys_of(w, cache, layer) + w->per_layer; }

static void store(const Work *w, float *cache, int layer, const float *qkv, int64_t at) {
  const Model *m = w->m;
  float *keys = keys_of(w, cache, layer), *values = values_of(w, cache, layer);
  const float *k = qkv + m->heads * m->dim, *v = k + m->kv_heads * m->dim;
  for (int h = 0; h < m->kv_heads; h++)
    for (int d = 0; d < m->dim; d++) {
      keys[((int64_t)h * m->dim + d) * w->positions + at] = k[h * m->dim + d];
      values[((int64_t)h * w->positions + at) * m->dim + d] = v[h * m->dim + d];
    }
}

static void add_bias(float *x, const float *bias, int rows, int width) {
  for (int i = 0; bias && i < rows; i++)
    for (int j = 0; j < width; j++) x[(int64_t)i * width + j] += bias[j];
}

static void embed(const Model *m, const int64_t *tokens, int rows, float *x) {
  for (int i = 0; i < rows; i++) memcpy(x + (int64_t)i * m->width, m->embed + tokens[i] * m->width, m->width * sizeof(float));
}

/* x += mlp(norm(x)) of `rows` rows */
static void feed_forward(const Work *w, int layer, float *x, int rows) {
  const Model *m = w->m;
  rms_norm(x, m->mlp_norm[layer], w->h, NULL, rows, m->width, m->eps, 1);
  linear(rows, 2 * m->inner, m->width, w->h, m->width, m->gate_up[layer], w->gate_up, 2 * m->inner, 0);
  swiglu(w->gate_up, w->act, rows, m->inner, 1);
  linear(rows, m->width, m->inner, w->act, m->inner, m->down[layer], x, m->width, 1);
}

/* fills `cache` with a prompt's keys and values; hidden [width] of its last token, after the last norm */
static void prefill(const Work *w, const int64_t *tokens, int rows, float *cache, float *hidden) {
  const Model *m = w->m;
  int wide = (m->heads + 2 * m->kv_heads) * m->dim, mixed_width = m->heads * m->dim, group = m->heads / m->kv_heads;
  float scale = 1.0f / sqrtf((float)m->dim), *x = w->x;
  embed(m, tokens, rows, x);
  for (int layer = 0; layer < m->layers; layer++) {
    int from = layer == m->layers - 1 ? rows - 1 : 0; /* of the last layer, the last token alone is read */
    rms_norm(x, m->attention_norm[layer], w->h, NULL, rows, m->width, m->eps, 1);
    linear(rows, wide, m->width, w->h, m->width, m->qkv[layer], w->qkv, wide, 0);
    add_bias(w->qkv, m->qkv_bias[layer], rows, wide);
    for (int i = 0; i < rows; i++) {
      int32_t position = i;
      rotate(w->qkv + (int64_t)i * wide, &position, m->cosines, m->sines, 1, wide, m->heads + m->kv_heads, m->dim, 1.0f, 1);
      store(w, cache, layer, w->qkv + (int64_t)i * wide, i);
    }
    for (int h = 0; h < m->heads; h++) {
      const float *keys = keys_of(w, cache, layer) + (int64_t)(h / group) * m->dim * w->positions;
      const float *values = values_of(w, cache, layer) + (int64_t)(h / group) * w->positions * m->dim;
      for (int i0 = from; i0 < rows; i0 += PANEL) {
        int n = rows - i0 < PANEL ? rows - i0 : PANEL;
        probabilities(w->qkv + (int64_t)i0 * wide + h * m->dim, wide, n, m->dim, keys, w->positions, 0, i0, scale,
                      w->probs, w->lse, 1, 0);
        product(n, m->dim, i0 + n, w->probs, w->positions, 1, values, m->dim,
                w->mixed + (int64_t)i0 * mixed_width + h * m->dim, mixed_width, 0);
      }
    }
    float *out = x + (int64_t)from * m->width;
    linear(rows - from, m->width, mixed_width, w->mixed + (int64_t)from * mixed_width, mixed_width, m->out[layer], out,
           m->width, 1);
    feed_forward(w, layer, out, rows - from);
  }
  rms_norm(x + (int64_t)(rows - 1) * m->width, m->norm, hidden, NULL, 1, m->width, m->eps, 1);
}

/* hidden [rows, width] of one new token a row, after the last norm */
static void decode(const Work *w, const int64_t *tokens, const int32_t *at, float *const *caches, int rows, float *hidden) {
  const Model *m = w->m;
  int wide = (m->heads + 2 * m->kv_heads) * m->dim, mixed_width = m->heads * m->dim, group = m->heads / m->kv_heads;
  float scale = 1.0f / sqrtf((float)m->dim);
  embed(m, tokens, rows, w->x);
  for (int layer = 0; layer < m->layers; layer++) {
    rms_norm(w->x, m->attention_norm[layer], w->h, NULL, rows, m->width, m->eps, 1);
    linear(rows, wide, m->width, w->h, m->width, m->qkv[layer], w->qkv, wide, 0);
    add_bias(w->qkv, m->qkv_bias[layer], rows, wide);
    rotate(w->qkv, at, m->cosines, m->sines, rows, wide, m->heads + m->kv_heads, m->dim, 1.0f, 1);
    for (int i = 0; i < rows; i++) {
      const float *q = w->qkv + (int64_t)i * wide;
      int count = at[i] + 1, reach = padded(count);
      store(w, caches[i], layer, q, at[i]);
      for (int h = 0; h < m->heads; h++) {
        const float *keys = keys_of(w, caches[i], layer) + (int64_t)(h / group) * m->dim * w->positions;
        const float *values = values_of(w, caches[i], layer) + (int64_t)(h / group) * w->positions * m->dim;
        float *p = w->probs, top = -INFINITY, sum = 0.0f;
        row_product(reach, m->dim, q + h * m->dim, keys, w->positions, p);
#pragma omp simd reduction(max : top)
        for (int j = 0; j < count; j++) top = p[j] > top ? p[j] : top;
        top *= scale;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < count; j++) sum += p[j] = fast_exp(p[j] * scale - top);
        float share = 1.0f / sum;
#pragma omp simd
        for (int j = 0; j < count; j++) p[j] *= share;
        row_product(m->dim, count, p, values, m->dim, w->mixed + (int64_t)i * mixed_width + h * m->dim);
      }
    }
    linear(rows, m->width, mixed_width, w->mixed, mixed_width, m->out[layer], w->x, m->width, 1);
    feed_forward(w, layer, w->x, rows);
  }
  rms_norm(w->x, m->norm, hidden, NULL, rows, m->width, m->eps, 1);
}

/* inverse of the cumulative distribution at `uniform`; the most likely token where it is negative */
static int64_t draw(float *z, const uint8_t *forbidden, int vocabulary, double uniform, float *logprob) {
  float top = -INFINITY;
  for (int j = 0; forbidden && j < vocabulary; j++) z[j] = forbidden[j] ? -INFINITY : z[j];
#pragma omp simd reduction(max : top)
  for (int j = 0; j < vocabulary; j++) top = z[j] > top ? z[j] : top;
  double total = 0.0;
  int64_t picked = -1, last = 0;
  if (uniform < 0) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < vocabulary; j++) sum += z[j] == -INFINITY ? 0.0f : fast_exp(z[j] - top);
    total = sum;
    for (int j = 0; picked < 0 && j < vocabulary; j++)
      if (z[j] == top) picked = j;
    *logprob = -logf(sum);
    return picked < 0 ? 0 : picked;
  }
  float picked_z, *p = z + padded(vocabulary);
#pragma omp simd
  for (int j = 0; j < vocabulary; j++) p[j] = z[j] == -INFINITY ? 0.0f : fast_exp(z[j] - top);
  for (int j = 0; j < vocabulary; j++) total += p[j];
  double target = uniform * total, sum = 0.0;
  for (int j = 0; j < vocabulary; j++) {
    sum += p[j];
    if (p[j] > 0.0f) last = j;
    if (sum > target) {
      picked = j;
      break;
    }
  }
  if (picked < 0) picked = last; /* a draw that rounds onto the total */
  picked_z = z[picked];
  *logprob = picked_z - top - (float)log(total);
  return picked;
}

static int is_end(const Request *r, int64_t token) {
  for (int e = 0; e < r->end_count; e++)
    if (r->ends[e] == token) return 1;
  return 0;
}

/* the rows of one thread: those of the prompts from *next on that it comes to take */
static int serve(const Model *m, const Request *r, int32_t *next) {
  int64_t positions = padded(r->longest + r->limit), per_layer = (int64_t)m->kv_heads * m->dim * positions;
  int64_t cache_size = 2 * m->layers * per_layer;
  int slots = r->slots, most = slots > r->longest ? slots : r->longest, vocabulary = padded(m->vocabulary);
  int wide = (m->heads + 2 * m->kv_heads) * m->dim;
  int64_t scratch = (int64_t)most * (2 * m->width + wide + m->heads * m->dim + 3 * m->inner) + PANEL * positions + PANEL +
                    (int64_t)slots * (vocabulary + m->width) + 2 * vocabulary + m->width + 64;
  float *memory = calloc(scratch, sizeof(float)), *caches = calloc((int64_t)(slots + 1) * cache_size, sizeof(float));
  int64_t *tokens = malloc(slots * sizeof(int64_t));
  int32_t *at = malloc(slots * sizeof(int32_t)), *row = malloc(slots * sizeof(int32_t)), *made = malloc(slots * sizeof(int32_t));
  float **own = malloc(slots * sizeof(float *));
  int failed = !memory || !caches || !tokens || !at || !row || !made || !own;
  if (!failed) {
    float *hidden, *first, *one, *p = memory;
    Work w = {.m = m, .positions = positions, .per_layer = per_layer};
    w.x = p, p += (int64_t)most * m->width;
    w.h = p, p += (int64_t)most * m->width;
    w.qkv = p, p += (int64_t)most * wide;
    w.mixed = p, p += (int64_t)most * m->heads * m->dim;
    w.gate_up = p, p += 2 * (int64_t)most * m->inner;
    w.act = p, p += (int64_t)most * m->inner;
    w.probs = p, p += PANEL * positions;
    w.lse = p, p += PANEL;
    w.logits = p, p += (int64_t)slots * vocabulary;
    hidden = p, p += (int64_t)slots * m->width;
    first = p, p += m->width;
    one = p; /* logits of one row, and room for its probabilities */
    float *template = caches + slots * cache_size;
    int32_t taken = 0, until = 0, length = 0; /* rows of the prompt whose cache `template` holds */
    int live = 0;
    for (int i = 0; i < slots; i++) own[i] = caches + i * cache_size;
    for (;;) {
      while (live < slots) { /* refill */
        if (taken == until) {
          int32_t prompt;
#pragma omp atomic capture
          prompt = (*next)++;
          if (prompt >= r->prompts) break;
          length = (int32_t)r->length[prompt], taken = r->first_row[prompt], until = r->first_row[prompt + 1];
          prefill(&w, r->tokens + r->start[prompt], length, template, first);
        }
        for (int64_t part = 0; part < 2 * m->layers; part++) { /* what lies past the prompt is not read */
          int by_position = part % 2;
          int64_t blocks = by_position ? m->kv_heads : (int64_t)m->kv_heads * m->dim;
          int64_t stride = by_position ? positions * m->dim : positions, used = by_position ? (int64_t)length * m->dim : length;
          for (int64_t b = 0; b < blocks; b++)
            memcpy(own[live] + part * per_layer + b * stride, template + part * per_layer + b * stride, used * sizeof(float));
        }
        linear(1, vocabulary, m->width, first, m->width, m->head, one, vocabulary, 0);
        int64_t place = (int64_t)taken * r->limit;
        tokens[live] = draw(one, r->forbidden, m->vocabulary, r->uniforms ? r->uniforms[place] : -1.0, r->logprobs + place);
        r->response[place] = tokens[live];
        row[live] = taken, made[live] = 1, at[live] = length;
        if ((r->ended[taken] = (uint8_t)is_end(r, tokens[live])) || r->limit == 1) r->lengths[taken] = 1;
        else live++;
        taken++;
      }
      if (!live) break;
      decode(&w, tokens, at, own, live, hidden);
      linear(live, vocabulary, m->width, hidden, m->width, m->head, w.logits, vocabulary, 0);
      for (int i = 0; i < live; i++) {
        int64_t place = (int64_t)row[i] * r->limit + made[i];
        memcpy(one, w.logits + (int64_t)i * vocabulary, vocabulary * sizeof(float));
        tokens[i] = draw(one, r->forbidden, m->vocabulary, r->uniforms ? r->uniforms[place] : -1.0, r->logprobs + place);
        r->response[place] = tokens[i];
        made[i]++, at[i]++;
      }
      for (int i = live - 1; i >= 0; i--) { /* finished rows give their place to the last one */
        r->ended[row[i]] = (uint8_t)is_end(r, tokens[i]);
        if (!r->ended[row[i]] && made[i] < r->limit) continue;
        r->lengths[row[i]] = made[i];
        float *freed = own[i];
        live--;
        tokens[i] = tokens[live], at[i] = at[live], row[i] = row[live], made[i] = made[live], own[i] = own[live];
        own[live] = freed;
      }
    }
  }
  free(memory), free(caches), free(tokens), free(at), free(row), free(made), free(own);
  return failed;
}

int generate(const Model *m, const Request *r, int threads) {
  int32_t next = 0;
  int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
  failed |= serve(m, r, &next);
  return failed;
}

/* weight [outputs, inputs] -> panels of 16 outputs, the last one filled up with zeros */
void pack_weight(const float *weight, float *packed, int64_t outputs, int64_t inputs) {
  for (int64_t n = 0; n < outputs; n += 16)
    for (int64_t k = 0; k < inputs; k++)
      for (int64_t j = 0; j < 16; j++) *packed++ = n + j < outputs ? weight[(n + j) * inputs + k] : 0.0f;
}
