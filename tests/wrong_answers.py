"""What somebody might well answer, by page and exercise; each check must refuse it."""

WRONG = {
    ("flex", 1): [
        "def honest(block_mask, n_heads):\n    return True",
        "def honest(block_mask, n_heads):\n"
        "    L, S = block_mask.seq_lengths\n"
        "    n_q, n_k = block_mask.BLOCK_SIZE\n"
        "    truth = create_mask(block_mask.mask_mod, 1, 1, L, S, device='cpu')[0, 0]\n"
        "    grid = kinds(block_mask).repeat_interleave(n_q, 0).repeat_interleave(n_k, 1)\n"
        "    grid = grid[:L, :S]\n"
        "    return not truth[grid == 0].any() and truth[grid == 2].all()",
        "def honest(block_mask, n_heads):\n"
        "    L, S = block_mask.seq_lengths\n"
        "    n_q, n_k = block_mask.BLOCK_SIZE\n"
        "    truth = create_mask(block_mask.mask_mod, 1, n_heads, L, S, device='cpu')[0]\n"
        "    grids = [kinds(block_mask, h % block_mask.shape[1]) for h in range(n_heads)]\n"
        "    grid = torch.stack(grids).repeat_interleave(n_q, 1).repeat_interleave(n_k, 2)\n"
        "    return not truth[grid[:, :L, :S] == 0].any()",
    ],
    ("flex", 2): [
        "def from_intervals(mod, L, n):\n    return made(mod, L, n=n)",
        "def from_intervals(mod, L, n):\n"
        "    place, zero = torch.arange(0, L, n), torch.zeros(2, dtype=torch.long)\n"
        "    some = mod(*zero, place[:, None], place).expand(L // n, L // n)\n"
        "    every = mod(*zero, place[:, None], place + n - 1).expand(L // n, L // n)\n"
        "    both = *listed(some & ~every), *listed(some & every)\n"
        "    return BlockMask.from_kv_blocks(\n"
        "        *(x[None, None].int() for x in both),\n"
        "        BLOCK_SIZE=n, mask_mod=mod, seq_lengths=(L, L))",
        "def from_intervals(mod, L, n):\n"
        "    every = torch.ones(L // n, L // n).bool()\n"
        "    both = *listed(every), *listed(~every)\n"
        "    return BlockMask.from_kv_blocks(\n"
        "        *(x[None, None].int() for x in both),\n"
        "        BLOCK_SIZE=n, mask_mod=mod, seq_lengths=(L, L))",
    ],
    ("gpu", 1): [
        "def either(first, last, other_first, other_last):\n"
        "    return torch.minimum(first, other_first), torch.maximum(last, other_last)",
        "def either(first, last, other_first, other_last):\n"
        "    later = torch.maximum(first, other_first)\n"
        "    if (later > torch.minimum(last, other_last)).any():\n"
        "        raise TypeError\n"
        "    return torch.minimum(first, other_first), torch.maximum(last, other_last)",
        "def either(first, last, other_first, other_last):\n"
        "    one, two = first < last, other_first < other_last\n"
        "    later = torch.maximum(first, other_first)\n"
        "    if (one & two & (later >= torch.minimum(last, other_last))).any():\n"
        "        raise TypeError\n"
        "    low = torch.where(one, first, 9).minimum(torch.where(two, other_first, 9))\n"
        "    return low, torch.where(one, last, 0).maximum(torch.where(two, other_last, 0))",
    ],
    ("gpu", 2): [
        "def exposes(f):\n    return not close(*gradient_of_keys(f, 9, 9, 0))",
        "def exposes(f):\n    return True",
        "def exposes(f):\n    return not close(*gradient_of_keys(f, 6, 9, 0))",
    ],
    ("online-softmax", 1): [
        "def entropy_of(tiles):\n"
        "    s = torch.cat(list(tiles))\n"
        "    powers = torch.exp(s)\n"
        "    return powers.sum().log() - powers @ s / powers.sum()",
        "def entropy_of(tiles):\n"
        "    found = [part(s, s[:, None]) for s in tiles]\n"
        "    outs, lses = map(torch.stack, zip(*found))\n"
        "    return torch.logsumexp(lses, 0) - outs.mean()",
        "def entropy_of(tiles):\n"
        "    largest = max(s.max() for s in tiles)\n"
        "    zero = torch.zeros(()).double()\n"
        "    total = sum((torch.exp(s - largest).sum() for s in tiles), zero)\n"
        "    mean = sum(torch.exp(s - largest) @ s for s in tiles) / total\n"
        "    return largest + total.log() - mean",
        "def entropy_of(tiles):\n"
        "    total = mean = torch.zeros(()).double()\n"
        "    largest = torch.tensor(lowest)\n"
        "    for s in tiles:\n"
        "        new = torch.maximum(largest, s.max())\n"
        "        powers = torch.exp(s - new)\n"
        "        total = torch.exp(largest - new) * total + powers.sum()\n"
        "        mean, largest = mean + powers @ s, new\n"
        "    return largest + total.log() - mean / total",
    ],
    ("online-softmax", 2): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    return not close(f(S.flip(1), V.flip(0), 4)[0], whole)",
        "def exposes(f):\n"
        "    rising = torch.tensor([[0.0, 800.0]], dtype=torch.float64)\n"
        "    values = torch.tensor([[1.0], [2.0]], dtype=torch.float64)\n"
        "    return not close(f(rising, values, 1)[0], values[1:])",
        "def exposes(f):\n"
        "    s = S - torch.arange(23) * 10\n"
        "    return not close(f(s, V, 4)[0], torch.softmax(s, dim=-1) @ V)",
    ],
    ("precision", 1): [
        "def round_to(x, digits):\n    return torch.round(x * 2**digits) / 2**digits",
        "def round_to(x, digits):\n    m, e = torch.frexp(x)\n"
        "    return torch.floor(m * 2**digits) * 2.0 ** (e - digits).double()",
        "def round_to(x, digits):\n    m, e = torch.frexp(x)\n"
        "    return torch.floor(m * 2**digits + 0.5) * 2.0 ** (e - digits).double()",
        "def round_to(x, digits):\n    m, e = torch.frexp(x)\n"
        "    return torch.round(m * 2 ** (digits - 1)) * 2.0 ** (e - digits + 1).double()",
    ],
    ("precision", 2): [
        "def largest_score(dtype, tolerance):\n    return math.log1p(tolerance) / unit(dtype)",
        "def largest_score(dtype, tolerance):\n    return math.log1p(tolerance) / (4 * unit(dtype))",
        "def largest_score(dtype, tolerance):\n    return tolerance / (2 * unit(torch.bfloat16))",
    ],
    ("precision", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    ones = torch.ones(8192, 8)\n"
        "    return not torch.allclose(f(torch.zeros(1, 8), ones, ones), ones[:1], atol=0.01)",
        "def exposes(f):\n    ones = torch.ones(1024, 8).bfloat16()\n"
        "    out = f(torch.zeros(1, 8).bfloat16(), ones, ones)\n"
        "    return not torch.allclose(out.float(), torch.ones(1, 8), atol=0.01)",
    ],
    ("roofline", 1): [
        "def passes(f):\n    return 15.0",
        "def passes(f):\n"
        "    moved = sum(x.total()[1] for x in there_and_back(40, 30, 3, 5, f=f))\n"
        "    return moved / (4 * 40 * 30)",
        "def passes(f):\n"
        "    a, b = (there_and_back(n, n, 3, 5, f=f)[0].total()[1] for n in (40, 20))\n"
        "    return (a - 2 * b) / (4 * 2 * 20 * 20)",
        "def passes(f):\n"
        "    a, b = (sum(x.total()[1] for x in there_and_back(n, 7, 3, 5, f=f)) for n in (40, 20))\n"
        "    return (a - b) / (4 * 20 * 7)",
    ],
    ("roofline", 2): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    return abs(f(4096, 4096) / pairs(4096) - 1) > 0.01",
        "def exposes(f):\n    return f(1, 8192) != 8192 // 2",
    ],
    ("split-keys", 1): [
        "def tournament(outs, lses):\n    return *merge(outs, lses), len(lses) - 1",
        "def tournament(outs, lses):\n    rounds = 0\n    while len(lses) > 1:\n"
        "        half = len(lses) // 2\n"
        "        outs, lses = merge(\n"
        "            *(x[: 2 * half].unflatten(0, (2, half)) for x in (outs, lses))\n        )\n"
        "        rounds += 1\n    return outs[0], lses[0], rounds",
        "def tournament(outs, lses):\n"
        "    return outs.mean(dim=0), torch.logsumexp(lses, dim=0), ceil(log2(len(lses)))",
    ],
    ("split-keys", 2): [
        "def dealt(mod, n):\n    return mod",
        "def dealt(mod, n):\n    def of_part(b, h, q_idx, kv_idx):\n"
        "        return mod(b, h % n, q_idx, kv_idx * n + h // n)\n    return of_part",
        "def dealt(mod, n):\n    return of_parts(mod, n, 24 // n)",
        "def dealt(mod, n):\n    def of_part(b, h, q_idx, kv_idx):\n"
        "        return mod(b, h, q_idx, kv_idx * n + h % n)\n    return of_part",
    ],
    ("split-keys", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    return not torch.allclose(f(queries, keys, values, 3), right)",
        "def exposes(f):\n    return f(queries, keys, values, 4).shape != right.shape",
    ],
    ("tiles", 1): [
        "def masked(query, key, value, scale, n_q, n_k, mod):\n"
        "    return forward(query, key, value, scale, n_q, n_k)[0]",
        "def masked(query, key, value, scale, n_q, n_k, mod):\n"
        "    return attention(query, key, value, mask=mod, scale=scale)",
        "def masked(query, key, value, scale, n_q, n_k, mod):\n    outs = []\n"
        "    for i in torch.arange(len(query)).split(n_q):\n"
        "        j = [j for j in torch.arange(len(key)).split(n_k) if kind(mod, i, j)]\n"
        "        j = torch.cat(j or [torch.arange(0)])\n"
        "        scores = scale * query[i] @ key[j].T\n"
        "        scores = scores.masked_fill(~mod(row, head, i[:, None], j), -torch.inf)\n"
        "        outs.append(torch.softmax(scores, dim=1) @ value[j])\n"
        "    return torch.cat(outs)",
    ],
    ("tiles", 2): [
        "def absolute(x):\n    return Interval(x.low.abs(), x.high.abs())",
        "def absolute(x):\n    a, b = x.low.abs(), x.high.abs()\n"
        "    return Interval(torch.minimum(a, b), torch.maximum(a, b))",
        "def absolute(x):\n    return Interval(0 * x.low, torch.maximum(-x.low, x.high))",
    ],
    ("tiles", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    grads = f(q, k, v, *results, grad, 0.7, 2, 8)\n"
        "    return not all(map(close, grads, by_autograd(q, k, v, grad)))",
        "def exposes(f):\n    grads = f(q, k, v, *results, grad, 0.7, 2, 2)\n"
        "    return not close(grads[2], by_autograd(q, k, v, grad)[2])",
    ],
    ("across", 1): [
        "def kernel_attention(query, key, value, width):\n"
        "    return attention(query, key, value, scale=1 / width**2)",
        "def kernel_attention(query, key, value, width):\n"
        "    q = torch.cat([query, torch.ones_like(query[:, :1])], dim=-1)\n"
        "    k = torch.cat([key, -key.square().sum(dim=-1, keepdim=True)], dim=-1)\n"
        "    return attention(q, k, value, scale=1 / width**2)",
        "def kernel_attention(query, key, value, width):\n"
        "    unit = key / key.norm(dim=-1, keepdim=True)\n"
        "    return attention(query, unit, value, scale=1 / width**2)",
    ],
    ("across", 2): [
        "def mean_of(x, lengths):\n    return x.nansum(dim=1) / lengths[:, None]",
        "def mean_of(x, lengths):\n    return x.mean(dim=1)",
        "def mean_of(x, lengths):\n    real = torch.arange(x.shape[1]) < lengths[:, None]\n"
        "    return (x * real[..., None]).sum(dim=1) / lengths[:, None]",
    ],
    ("across", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    out = f(targets, source.repeat(2, 1, 1), full)[1]\n"
        "    return not torch.allclose(out, attention(target, source, source))",
        "def exposes(f):\n    x = source.repeat(2, 1, 1)\n    y = x.clone()\n    y[0] *= 10\n"
        "    n = torch.tensor([6, 4])\n"
        "    return not torch.allclose(f(targets, x, n), f(targets, y, n))",
    ],
    ("backward", 1): [
        "def grad_scale(*args):\n    return (backward(*args)[0] * args[0]).sum()",
        "def grad_scale(*args):\n    dq, dk, _ = backward(*args)\n"
        "    return ((dq * args[0]).sum() + (dk * args[1]).sum()) / args[-1]",
        "def grad_scale(q, k, v, g, c):\n    return (g * forward(q, k, v, c)).sum() / c",
    ],
    ("backward", 2): [
        "def backward_both(q, k, v, g, grad_lse, c):\n    return backward(q, k, v, g, c)",
        "def backward_both(q, k, v, g, grad_lse, c):\n"
        "    average = (g * forward(q, k, v, c)).sum(-1) + grad_lse\n"
        "    return backward_some(q, k, v, g, c, torch.logsumexp(c * q @ k.T, -1), average)",
    ],
    ("backward", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    a = q[:1], k, v, grad[:1], 0.7\n"
        "    return not agree(f(*a), by_autograd(*a))",
        "def exposes(f):\n    a = q, k[:5], v[:5], grad, 0.7\n"
        "    return not torch.allclose(f(*a)[2], by_autograd(*a)[2])",
    ],
    ("causal", 1): [
        "def prefix(n):\n    return causal",
        "def prefix(n):\n    def mod(b, h, q_idx, kv_idx):\n"
        "        return (q_idx >= kv_idx) | (q_idx < n)\n    return mod",
        "def prefix(n):\n    def mod(b, h, q_idx, kv_idx):\n"
        "        return (q_idx >= kv_idx) & (kv_idx < n)\n    return mod",
    ],
    ("causal", 2): [
        "def packed(sentence):\n    return causal",
        "def packed(sentence):\n    def same(b, h, q_idx, kv_idx):\n"
        "        return sentence[q_idx] == sentence[kv_idx]\n    return same",
        "def packed(sentence):\n    def same(b, h, q_idx, kv_idx):\n"
        "        return sentence[kv_idx] == sentence[0]\n    return and_masks(causal, same)",
    ],
    ("causal", 3): [
        "def exposes(attend):\n    return True",
        "def exposes(attend):\n"
        "    return influence(lambda x: attend(x, x, x), x).triu(diagonal=1).any()",
        "def exposes(attend):\n    return not influence(lambda x: attend(x, x, x), x)[0, 0]",
        "def exposes(attend):\n"
        "    return not influence(lambda y: attend(x, y, y), x).diagonal().all()",
    ],
    ("heads", 1): [
        "from copy import deepcopy\n\n\ndef permute_heads(layer, order):\n    return deepcopy(layer)",
        "from copy import deepcopy\n\n\ndef permute_heads(layer, order):\n"
        "    D, other = layer.head_dim, deepcopy(layer)\n"
        "    moved = torch.cat([torch.arange(h * D, h * D + D) for h in order])\n"
        "    for linear in (other.query, other.key, other.value):\n"
        "        linear.weight.data = linear.weight.data[moved]\n"
        "    return other",
        "from copy import deepcopy\n\n\ndef permute_heads(layer, order):\n"
        "    D, other = layer.head_dim, deepcopy(layer)\n"
        "    moved = torch.cat([torch.arange(h * D, h * D + D) for h in order])\n"
        "    for linear in (other.query, other.key, other.value, other.out):\n"
        "        linear.weight.data = linear.weight.data[moved]\n"
        "    return other",
    ],
    ("heads", 2): [
        "def n_parameters(d_model, n_heads, bias):\n    return 4 * d_model**2",
        "def n_parameters(d_model, n_heads, bias):\n"
        "    return (4 * d_model**2 + 4 * d_model * bias) * n_heads",
        "def n_parameters(d_model, n_heads, bias):\n    return 3 * d_model**2 + 3 * d_model * bias",
    ],
    ("heads", 3): [
        "def from_torch(theirs):\n"
        "    ours = MultiHeadAttention(theirs.embed_dim, theirs.num_heads).double()\n"
        "    with torch.no_grad():\n"
        "        for a, b in pairs(ours, theirs):\n"
        "            a.copy_(b)\n"
        "    return ours",
        "def from_torch(theirs):\n"
        "    ours = MultiHeadAttention(theirs.embed_dim, theirs.num_heads, bias=True).double()\n"
        "    with torch.no_grad():\n"
        "        for a, b in pairs(ours, theirs):\n"
        "            a.copy_(b)\n"
        "        ours.out.bias.copy_(theirs.out_proj.bias)\n"
        "    return ours",
    ],
    ("heads", 4): [
        "def exposes(f):\n    return f(torch.randn(2, 6, 12), 3).shape != (2, 6, 12)",
        "def exposes(f):\n"
        "    x = torch.randn(6, 12, dtype=torch.float64)\n"
        "    return bool(influence(lambda x: f(x[None], 2)[0], x).triu(diagonal=1).any())",
        "def exposes(f):\n"
        "    x = torch.randn(2, 6, 12)\n"
        "    return not torch.allclose(f(x, 1), right(x, 1))",
    ],
    ("queries-keys-values", 1): [
        "M = torch.eye(3)",
        "M = 10 * torch.eye(3)",
        "M = 10 * torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])",
    ],
    ("queries-keys-values", 2): [
        "def disguise(W_query, W_key, A):\n    return W_query, W_key",
        "def disguise(W_query, W_key, A):\n    return W_query @ A, W_key @ torch.linalg.inv(A)",
        "def disguise(W_query, W_key, A):\n    return W_query @ A, W_key @ A",
        "def disguise(W_query, W_key, A):\n    return 2 * W_query, W_key / 2",
    ],
    ("queries-keys-values", 3): [
        "def exposes(make):\n    return True",
        "def exposes(make):\n    return make(3, 2)(inputs).shape != (6, 2)",
        "def exposes(make):\n    return len(list(make(3, 2).parameters())) == 3",
    ],
    ("scaling", 1): [
        "def bound(d_in):\n    return 1 / math.sqrt(d_in)",
        "def bound(d_in):\n    return math.sqrt(3 / 64)",
        "def bound(d_in):\n    return 3 / math.sqrt(d_in)",
    ],
    ("scaling", 2): [
        "def crowd(D):\n    return math.exp(math.sqrt(D))",
        "def crowd(D):\n    return math.exp(D / 8 - 0.5)",
        "def crowd(D):\n    return math.sqrt(D)",
    ],
    ("scaling", 3): [
        "def exposes(attend):\n    return not torch.allclose(attend(queries, keys, values), out)",
        "def exposes(attend):\n    x = torch.randn(2, 3, 5, 7)\n"
        "    return attend(x, x, x).shape != x.shape",
        "def exposes(attend):\n    x = torch.randn(2, 8, 5, 8)\n"
        "    return not torch.allclose(attend(x, x, x), attention(x, x, x), atol=1e-5)",
    ],
    ("similarity", 1): [
        "def cosine_weights(x):\n    return torch.softmax(x @ x.T, dim=-1)",
        "def cosine_weights(x):\n    return torch.full((6, 6), 1 / 6)",
    ],
    ("similarity", 2): ["padding_weight = 0.0", "padding_weight = 1 / 7"],
    ("similarity", 3): [
        "def exposes(attend):\n    return True",
        "def exposes(attend):\n    return bool(attend(inputs).mean() > 0.7)",
        "def exposes(attend):\n    return attend(inputs).shape != inputs.shape",
    ],
    ("softmax", 1): [
        "def entropy(s):\n    w = softmax(s)\n    return -(w * w.log()).sum()",
        "def entropy(s):\n    return logsumexp(s)",
    ],
    ("softmax", 2): [
        "def heat(s, t):\n    w = softmax(s / t)\n    return w * (s - w @ s) / t**2",
        "def heat(s, t):\n    w = softmax(s / t)\n    return -w * (s - w @ s)",
    ],
    ("softmax", 3): [
        "def exposes(f):\n    return not torch.allclose(f(scores), weights)",
        "def exposes(f):\n    return not torch.allclose(f(scores + 200), weights)",
    ],
    ("softmax", 4): [
        "def merge(a, b):\n    return (a[0] + b[0]) / 2, logsumexp(torch.stack([a[1], b[1]]))",
        "def merge(a, b):\n    lses = torch.stack([a[1], b[1]])\n"
        "    return softmax(lses) @ torch.stack([a[0], b[0]]), lses.max()",
    ],
    ("biases", 1): [
        "def slope_for(mean):\n    return 1 / mean",
        "def slope_for(mean):\n    return 1 / (mean + 0.5)",
        "def slope_for(mean):\n    return math.log(1 + mean)",
        "def slope_for(mean):\n    return math.exp(1 / mean) - 1",
    ],
    ("biases", 2): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n"
        "    how = {'mask': causal, 'score_mod': half_a_place}\n"
        "    out = f(queries, keys, values)\n"
        "    return not torch.allclose(out, attention(queries, keys, values, **how))",
        "def exposes(f):\n    return f(queries[5:], keys, values).shape != (1, 2)",
        "def exposes(f):\n"
        "    x = torch.zeros(6, 2)\n"
        "    return not torch.allclose(f(x[5:], x, values[:, :1] * 0 + 1), torch.ones(1, 1))",
    ],
    ("permutation", 1): [
        "def moved(mod, order):\n    return mod",
        "def moved(mod, order):\n    inverse = order.argsort()\n"
        "    return lambda b, h, q, k: mod(b, h, inverse[q], inverse[k])",
        "def moved(mod, order):\n    return lambda b, h, q, k: mod(b, h, order[q], k)",
    ],
    ("permutation", 2): [
        "def by_counts(words, counts):\n    return attention(words, words, words)",
        "def by_counts(words, counts):\n"
        "    return attention(words, words, counts[:, None] * words) / counts.sum()",
        "def by_counts(words, counts):\n    return attention(words, words, words,"
        " score_mod=lambda s, b, h, q, k: s * counts[k])",
    ],
    ("permutation", 3): [
        "def exposes(g):\n    return True",
        "def exposes(g):\n    order = torch.tensor([0, 2, 1, 3, 5, 4])\n"
        "    return not torch.allclose(g(context, inputs, order), context(inputs))",
        "def exposes(g):\n    order = torch.tensor([1, 2, 0])\n    x = inputs[:3]\n"
        "    return torch.equal(g(context, x, order), context(x[order]))",
    ],
    ("positions", 1): [
        "def before(d_model, base):\n    return torch.eye(d_model).double()",
        "def before(d_model, base):\n    return step(-1, d_model, base)",
        "def before(d_model, base):\n    return step(2, d_model, base)",
        "def before(d_model, base):\n    return torch.diag(torch.ones(d_model - 1), -1).double()",
    ],
    ("positions", 2): [
        "def places_of(real):\n    return torch.arange(real.shape[1]).expand(real.shape)",
        "def places_of(real):\n    return real.long().cumsum(dim=1) - 1",
        "def places_of(real):\n    return real.long().cumsum(dim=1).clamp(max=5)",
        "def places_of(real):\n"
        "    pads = (~real).sum(dim=1, keepdim=True)\n"
        "    return (torch.arange(real.shape[1]) - pads).clamp(min=0)",
    ],
    ("positions", 3): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    return f(torch.arange(20), 16).shape != (20, 16)",
        "def exposes(f):\n    return len(f(torch.arange(20), 16).unique(dim=0)) < 20",
        "def exposes(f):\n    x = torch.arange(20)\n"
        "    return not torch.allclose(f(x, 16).float(), sinusoidal(x, 16), atol=1e-4)",
        "def exposes(f):\n    c = f(torch.arange(20), 16)\n"
        "    return not torch.allclose(c @ c.T, (c @ c.T).T)",
    ],
    ("rotary", 1): [
        "def looking_back(f, key, distance):\n    return key",
        "def looking_back(f, key, distance):\n    return f(key[None], offset=distance)[0]",
        "def looking_back(f, key, distance):\n    return -f(key[None], offset=-distance)[0]",
    ],
    ("rotary", 2): [
        "def exposes(f):\n    return True",
        "def exposes(f):\n    q, k = torch.randn(2, 5, 24, dtype=torch.float64)\n"
        "    here = (f(q, 3, 0) @ f(k, 3, 2).mT).sum(0)\n"
        "    return not close(here, (f(q, 3, 7) @ f(k, 3, 9).mT).sum(0))",
        "def exposes(f):\n    q = torch.randn(5, 24, dtype=torch.float64)\n"
        "    return not close(f(q, 3, 0)[:, 0], q[0].view(3, 8))",
        "def exposes(f):\n    q = torch.randn(5, 24, dtype=torch.float64)\n"
        "    return not close(f(q, 3, 4).square().sum((0, 2)), q.square().sum(1))",
    ],
}
