"""Fused activations against their plain definitions: values, gradients, precisions, and what they hold."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from acestep_mlx.nn import cpu, device
from acestep_mlx.nn.activations import attend, gated_conv, masked, relu, rms_norm, silu, softmax, swiglu

DTYPES = [mx.float32, mx.bfloat16, mx.float16]


def normal(seed: int, *shape: int, scale: float = 1.0) -> mx.array:
    return scale * mx.random.normal(shape, key=mx.random.key(seed))


def close(got: mx.array, expected: mx.array, tolerance: float) -> bool:
    difference = mx.linalg.norm((got.astype(mx.float32) - expected).flatten())
    return difference.item() <= tolerance * mx.linalg.norm(expected.flatten()).item()


def plain_gated_conv(x: mx.array, shift: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    x = mx.conv1d(nn.silu(x + shift), weight, padding=1, groups=x.shape[-1]) + bias
    value, gate = mx.split(x, 2, axis=-1)
    return value * nn.silu(gate)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_silu_softmax_relu(dtype: mx.Dtype, compiled: bool) -> None:
    tolerance = 1e-5 if dtype == mx.float32 else 1e-2
    x, weight = normal(0, 4, 50, scale=6.0).astype(dtype).astype(mx.float32), normal(1, 4, 50)
    plain = {silu: nn.silu, softmax: lambda x: mx.softmax(x, axis=-1), relu: nn.relu}
    for ours, theirs in plain.items():
        run = mx.compile(ours) if compiled else ours
        assert close(run(x.astype(dtype)), theirs(x), tolerance)
        gradient = mx.grad(lambda x, ours=ours: mx.sum(ours(x).astype(mx.float32) * weight))(x.astype(dtype))
        expected = mx.grad(lambda x, theirs=theirs: mx.sum(theirs(x) * weight))(x)
        assert gradient.dtype == dtype and close(gradient, expected, 2 * tolerance)


@pytest.mark.parametrize("value", [-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4])
def test_extreme_values_are_finite(value: float) -> None:
    x = mx.array([[value, 0.0, -value]])
    assert close(silu(x), nn.silu(x), 1e-5) or value == 0
    assert close(softmax(x), mx.softmax(x, axis=-1), 1e-5)
    for f in (silu, softmax):
        assert mx.all(mx.isfinite(mx.grad(lambda x, f=f: mx.sum(f(x)))(x))).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_gated_conv(dtype: mx.Dtype, frames: int) -> None:
    x, weight, bias, c = normal(0, 2, frames, 12), normal(1, 12, 3, 1), normal(2, 12), normal(3, 2, frames, 6)
    shift = normal(4, 12)
    tolerance = 1e-5 if dtype == mx.float32 else 2e-2
    given = [a.astype(dtype) for a in (x, shift, weight, bias)]
    assert close(gated_conv(*given), plain_gated_conv(x, shift, weight, bias), tolerance)

    def loss(f, *arrays: mx.array) -> mx.array:
        return mx.sum(f(*arrays).astype(mx.float32) * c)

    got = mx.grad(lambda *a: loss(gated_conv, *a), argnums=(0, 1, 2, 3))(*given)
    expected = mx.grad(lambda *a: loss(plain_gated_conv, *a), argnums=(0, 1, 2, 3))(x, shift, weight, bias)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype and close(g, e, 2 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_ignores_masked_keys(dtype: mx.Dtype) -> None:
    q, k, v = (normal(i, 2, 3, 5, 8).astype(dtype) for i in range(3))
    mask = mx.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:, None, None] > 0
    junk = mx.where(mask.swapaxes(-1, -2), v, 1e3).astype(dtype)
    got = attend(q, k, junk, mask)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5, mask=mask)
    assert close(got, expected.astype(mx.float32), 1e-5 if dtype == mx.float32 else 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_where_no_kernel_has_its_gradient(monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype) -> None:
    """As on Metal in training: values and gradients are those of the plain formula."""
    monkeypatch.setattr(cpu, "on_cpu", lambda: False)
    monkeypatch.setattr(device, "attention_gradient_is_fused", lambda: False)
    given = [normal(i, 2, 3, n, 8).astype(dtype) for i, n in enumerate((4, 5, 5))]
    mask, c = mx.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:, None, None] > 0, normal(3, 2, 3, 4, 8)

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = mx.where(mask, (q * 8**-0.5) @ k.swapaxes(-1, -2), -1e9)
        return mx.softmax(scores, axis=-1) @ v

    wide = [x.astype(mx.float32) for x in given]
    tolerance = 1e-5 if dtype == mx.float32 else 2e-2
    ours = lambda *a: attend(*a, mask, gradient=True)  # noqa: E731
    assert close(ours(*given), plain(*wide), tolerance)
    got = mx.vjp(lambda *a: [ours(*a)], given, [c.astype(dtype)])[1]
    for g, e in zip(got, mx.vjp(lambda *a: [plain(*a)], wide, [c])[1], strict=True):
        assert g.dtype == dtype and close(g, e, 2 * tolerance)


def test_masked_leaves_the_rest_alone() -> None:
    scores = normal(0, 2, 4)
    assert mx.array_equal(masked(scores, None), scores)
    mask = mx.array([True, False, True, True])
    assert softmax(masked(scores, mask))[:, 1].max().item() < 1e-30


@pytest.mark.slow
def test_the_backward_pass_holds_little() -> None:
    """Compiled, in bfloat16: the gradient of the gated convolution needs less than eight times its input."""
    x = normal(0, 1, 256, 2048).astype(mx.bfloat16)
    weight, bias, c = normal(1, 2048, 3, 1), normal(2, 2048), normal(3, 1, 256, 1024).astype(mx.bfloat16)
    weight, bias = weight.astype(mx.bfloat16), bias.astype(mx.bfloat16)
    run = mx.compile(lambda x, c: mx.vjp(lambda x: gated_conv(x, bias, weight, bias), [x], [c])[1][0])
    mx.eval(x, weight, bias, c, run(x, c))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(run(x, c))
    assert mx.get_peak_memory() - before < 8 * x.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: mx.Dtype) -> None:
    gate, up, c = (normal(i, 3, 40, scale=4.0).astype(dtype).astype(mx.float32) for i in range(3))
    tolerance = 1e-5 if dtype == mx.float32 else 1e-2
    given = gate.astype(dtype), up.astype(dtype)
    assert close(swiglu(*given), nn.silu(gate) * up, tolerance)
    ours = mx.vjp(lambda g, u: [swiglu(g, u)], given, [c.astype(dtype)])[1]
    theirs = mx.vjp(lambda g, u: [nn.silu(g) * u], [gate, up], [c])[1]
    assert all(a.dtype == dtype and close(a, b, 2 * tolerance) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("queries_share", [1, 3], ids="{} heads of queries share keys".format)
@pytest.mark.parametrize("mask", [None, (2, 1, 1, 9), (1, 1, 5, 9)], ids=str)
def test_grouped_attention(mask: tuple[int, ...] | None, queries_share: int) -> None:
    """Also where nothing but one key is seen, and where scores are far apart."""
    q, k, v = normal(0, 2, 2 * queries_share, 5, 8, scale=9.0), normal(1, 2, 2, 9, 8), normal(2, 2, 2, 9, 8)
    added = None if mask is None else mx.where(mx.arange(9) % 3 == 1, 0.0, -1e5) * mx.ones(mask)
    c = normal(3, *q.shape)

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        k, v = (mx.repeat(x, queries_share, axis=1) for x in (k, v))
        scores = q @ k.swapaxes(-1, -2) * 8**-0.5
        return mx.softmax(scores if added is None else scores + added, axis=-1) @ v

    assert close(cpu.grouped_attention(q, k, v, added), plain(q, k, v), 1e-6)
    ours = mx.vjp(lambda *x: [cpu.grouped_attention(*x, added)], [q, k, v], [c])[1]
    theirs = mx.vjp(lambda *x: [plain(*x)], [q, k, v], [c])[1]
    assert all(close(a, b, 1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("length", "keys"), [(24, 24), (21, 17)])
def test_sliding_attention(length: int, keys: int) -> None:
    """A block's queries see their own and both neighbouring blocks, as far as the mask lets them."""
    W, N = 4, 6
    q, c = (normal(i, 2, 4, length, 8) for i in (0, 3))
    k, v = (normal(i, 2, 2, length, 8) for i in (1, 2))
    i, j = mx.arange(length)[:, None], mx.arange(length)[None]
    seen = (mx.abs(i - j) <= W) & (j < keys)
    a, b = mx.arange(W)[:, None], mx.arange(3 * W)[None]
    at = (mx.arange(N)[:, None, None] - 1) * W + b
    blocks = (mx.abs(a + W - b) <= W) & (at >= 0) & (at < keys)
    added = mx.where(blocks, 0.0, -1e5)[None, :, None]

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        k, v = (mx.repeat(x, 2, axis=1) for x in (k, v))
        return mx.softmax(mx.where(seen, q @ k.swapaxes(-1, -2) * 8**-0.5, -1e5), axis=-1) @ v

    rows = slice(0, keys)  # what has keys to see
    c = mx.where(mx.arange(length)[:, None] < keys, c, 0)
    assert close(cpu.sliding_attention(q, k, v, added)[:, :, rows], plain(q, k, v)[:, :, rows], 1e-6)
    ours = mx.vjp(lambda *x: [cpu.sliding_attention(*x, added)], [q, k, v], [c])[1]
    theirs = mx.vjp(lambda *x: [plain(*x)], [q, k, v], [c])[1]
    assert all(close(a, b, 1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weighted", [True, False])
def test_the_norm_is_the_kernels(weighted: bool) -> None:
    x, weight = normal(0, 2, 3, 40, scale=5.0), normal(1, 40) if weighted else None
    assert close(rms_norm(x, weight, 1e-6), mx.fast.rms_norm(x, weight, 1e-6), 1e-6)
    ours = mx.grad(lambda x: mx.sum(rms_norm(x, weight, 1e-6) ** 3))(x)
    assert close(ours, mx.grad(lambda x: mx.sum(mx.fast.rms_norm(x, weight, 1e-6) ** 3))(x), 1e-5)


def test_a_sigmoid_close_to_zero_keeps_its_digits() -> None:
    x = mx.array([-86.0, -60.5, -20.0, -3.0, -0.1, 0.0, 0.1, 3.0, 20.0, 86.0])
    assert mx.allclose(cpu.sigmoid(x), mx.sigmoid(x), rtol=2e-6, atol=0.0)
    assert cpu.sigmoid(mx.array([-1e6, -100.0, 100.0, 1e6])).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_powers_of_two_and_none_too_small_to_be_fast() -> None:
    x = mx.array([[0.0, -0.5, -0.4999, -3.25, -60.0, -125.9, -127.6, -400.0, -1e5]])
    got, expected = cpu.exp2_below(x, mx.zeros((1, 1))), mx.power(2.0, x)
    assert mx.allclose(got[:, :6], expected[:, :6], rtol=1e-6, atol=0.0)
    assert not got[:, 6:].any()


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (7, 1), (7, 3), (7, 9)])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_convolution_by_taps(kernel: int, dilation: int, length: int) -> None:
    x, weight, halo = normal(0, 2, length, 8), normal(1, 6, kernel, 8), dilation * (kernel // 2)
    expected = mx.conv1d(x, weight, padding=halo, dilation=dilation)
    assert close(cpu.convolve_by_taps(x, weight, dilation, halo), expected, 1e-6)
