"""Associative recall: the small task on which the book trains its layers.

A list of pairs, each a key token and a value token, is followed by one of its
keys; the answer is the value of that pair:

    k3 v1  k0 v7  k5 v2  k6 v7  k0   ->   v7

The embeddings of tokens, positions and answers are fixed random vectors; only
the layers are trained.

Sources: Ba et al., "Using fast weights to attend to the recent past" (2016),
section 4.1; Arora et al., "Zoology" (2023).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from attention.validation import argument_error, check_sizes


def recall_batch(
    n: int,
    *,
    n_pairs: int = 4,
    n_keys: int = 8,
    n_values: int = 8,
    generator: Generator | None = None,
) -> tuple[Integer[Tensor, "n length"], Integer[Tensor, "n"]]:
    """Random lists of pairs, each followed by one of its keys, and answers.

    Args:
        n: number of lists.
        n_pairs: pairs in a list; at most n_keys, as a list's keys differ.
        n_keys: number of keys, the tokens 0 to n_keys - 1.
        n_values: number of values, the tokens from n_keys on.
        generator: source of the random numbers; None is torch's own.

    Returns:
        Tokens (n, 2 n_pairs + 1), and answers (n,) from 0 to n_values - 1.

    Raises:
        TypeError, ValueError: a size is not an integer, or is below 1; n_pairs
            is above n_keys.

    Example:
        >>> import torch
        >>> from attention import recall_batch
        >>> tokens, answers = recall_batch(5, n_pairs=3)
        >>> tokens.shape, answers.shape
        (torch.Size([5, 7]), torch.Size([5]))
    """
    check_sizes(n=n, n_pairs=n_pairs, n_keys=n_keys, n_values=n_values)
    if n_pairs > n_keys:
        raise ValueError(f"n_pairs={n_pairs} must be at most n_keys={n_keys}")
    shuffled = torch.rand(n, n_keys, generator=generator).argsort(1)
    keys = shuffled[:, :n_pairs]  # (n, n_pairs)
    values = torch.randint(n_values, (n, n_pairs), generator=generator)
    asked = torch.randint(n_pairs, (n, 1), generator=generator)
    pairs = torch.stack([keys, n_keys + values], dim=2)  # (n, n_pairs, 2)
    tokens = torch.cat([pairs.flatten(1), keys.gather(1, asked)], dim=1)
    return tokens, values.gather(1, asked)[:, 0]


# --8<-- [start:train_recall]
def train_recall(
    layer: Callable[[], nn.Module],
    *,
    steps: int = 300,
    n_layers: int = 2,
    d_model: int = 64,
    positional: bool = True,
    seed: int = 0,
) -> float:
    """Train layers on associative recall, and return their accuracy.

    Each layer normalises its input (layer norm) and adds its output to it (a
    residual connection). The last token's vector is compared with one fixed
    vector for each value.

    Args:
        layer: a function that makes a module of (B, L, d_model) to the same
            shape; it is called n_layers times.
        steps: steps of Adam, each on 128 new lists.
        n_layers: number of layers.
        d_model: size of a token's vector.
        positional: add a fixed random vector for each position.
        seed: seed of everything; torch's own generator is left unchanged.

    Returns:
        The share of right answers on 2000 other lists. Guessing gives 1/8, and
        the list's most frequent value about 0.4.

    Raises:
        TypeError, ValueError: layer is not a function that makes such modules,
            or a size is not an integer, or is below 1.

    Example:
        >>> from torch import nn
        >>> from attention import train_recall
        >>> train_recall(lambda: nn.Linear(64, 64), steps=2) < 0.3
        True
    """
    check_sizes(steps=steps, n_layers=n_layers, d_model=d_model)
    if isinstance(layer, nn.Module) or not callable(layer):
        rule = "be a function that makes a module"
        raise argument_error("layer", rule, type(layer).__name__, TypeError)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = [layer() for _ in range(n_layers)]
        if not all(isinstance(made, nn.Module) for made in layers):
            got = [type(made).__name__ for made in layers]
            raise argument_error("layer", "make a module", got, TypeError)
        model = _Model(layers, d_model, positional)
        learned = list(model.parameters())
        optimizer = torch.optim.Adam(learned, lr=3e-3) if learned else None
        for _ in range(steps):
            tokens, answers = recall_batch(128)
            loss = cross_entropy(model(tokens), answers)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        tokens, answers = recall_batch(2000)
    with torch.no_grad():
        predicted: Tensor = model.eval()(tokens).argmax(-1)  # (2000,)
    return float((predicted == answers).double().mean())


# --8<-- [end:train_recall]


class _Model(nn.Module):
    """Fixed embeddings, trained layers, and fixed vectors of the answers."""

    def __init__(
        self, layers: list[nn.Module], d_model: int, positional: bool
    ) -> None:
        super().__init__()
        tokens, _ = recall_batch(1)
        self.layers = nn.ModuleList(layers)
        self.tokens = torch.randn(16, d_model)
        self.positions = torch.randn(tokens.shape[1], d_model) * positional
        self.answers = torch.randn(8, d_model)

    def forward(
        self, tokens: Integer[Tensor, "n length"]
    ) -> Float[Tensor, "n n_values"]:
        x: Tensor = self.tokens[tokens] + self.positions  # (n, L, d_model)
        for layer in self.layers:
            out = layer(layer_norm(x, x.shape[-1:]))
            if out.shape != x.shape:
                rule = f"keep the shape {tuple(x.shape)}"
                raise argument_error("layer", rule, tuple(out.shape))
            x = x + out
        logits: Tensor = x[:, -1] @ self.answers.T / x.shape[-1] ** 0.5
        return logits  # (n, n_values)
