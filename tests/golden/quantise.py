"""Valid blocks, near the data, of ggml types that the gguf package can only read; the exact choice of scales does not matter."""
import numpy as np
from gguf import GGMLQuantizationType as Q

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def bytes_of(f16):
    return np.ascontiguousarray(f16, "<f2")[:, None].view(np.uint8)


def above_zero(x):
    return np.maximum(x, 1e-8)


def q5_k(data):
    rows = data.reshape(-1, 8, 32).astype(np.float32)  # 8 sub-blocks a block: w = d * sc * q - dmin * m
    low = np.minimum(rows.min(axis=2), 0)
    step = (rows.max(axis=2) - low) / 31
    d = np.maximum(step.max(axis=1), 1e-8).astype(np.float32) / 63
    dmin = np.maximum((-low).max(axis=1), 1e-8).astype(np.float32) / 63
    d, dmin = d.astype(np.float16), dmin.astype(np.float16)
    sc = np.clip(np.rint(step / d.astype(np.float32)[:, None]), 0, 63).astype(np.uint8)
    m = np.clip(np.rint(-low / dmin.astype(np.float32)[:, None]), 0, 63).astype(np.uint8)
    scale = (d.astype(np.float32)[:, None] * sc)[:, :, None]
    offset = (dmin.astype(np.float32)[:, None] * m)[:, :, None]
    q = np.clip(np.rint((rows + offset) / np.where(scale == 0, 1, scale)), 0, 31).astype(np.uint8)
    scales = np.zeros((len(rows), 12), np.uint8)  # 6 bits each: the first four plain, the others in two parts
    scales[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4 << 6)
    scales[:, 4:8] = m[:, :4] | (m[:, 4:] >> 4 << 6)
    scales[:, 8:12] = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    high = np.zeros((len(rows), 32), np.uint8)
    for j in range(8):
        high |= (q[:, j] >> 4) << j
    quants = (q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4  # [blocks, 4, 32]
    blocks = np.concatenate([d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), scales, high,
                             quants.reshape(len(rows), 128)], axis=1)  # fmt: skip
    return blocks.reshape(*data.shape[:-1], -1)


def two_bits(q):
    """[blocks, 256] codes 0..3: 32 bytes hold four runs of 32."""
    q = q.reshape(len(q), 2, 4, 32)
    return sum((q[:, :, j] << 2 * j) for j in range(4)).reshape(len(q), 64).astype(np.uint8)


def q2_k(data):
    rows = data.reshape(-1, 16, 16).astype(np.float64)  # w = d * sc * q - dmin * m
    low = np.minimum(rows.min(axis=2), 0)
    step = (rows.max(axis=2) - low) / 3
    d, dmin = (above_zero(x.max(axis=1) / 15).astype(np.float16) for x in (step, -low))
    sc = np.clip(np.rint(step / d.astype(float)[:, None]), 1, 15).astype(int)
    m = np.clip(np.rint(-low / dmin.astype(float)[:, None]), 0, 15).astype(int)
    scale, offset = (d.astype(float)[:, None] * sc)[:, :, None], (dmin.astype(float)[:, None] * m)[:, :, None]
    q = np.clip(np.rint((rows + offset) / scale), 0, 3).astype(int).reshape(len(rows), 256)
    blocks = np.concatenate([(sc | m << 4).astype(np.uint8), two_bits(q), bytes_of(d), bytes_of(dmin)], axis=1)
    return blocks.reshape(*data.shape[:-1], -1)


def q3_k(data):
    rows = data.reshape(-1, 16, 16).astype(np.float64)  # w = d * (sc - 32) * (q - 4)
    step = np.abs(rows).max(axis=2) / 4
    d = above_zero(step.max(axis=1) / 31).astype(np.float16)
    sc = np.clip(np.rint(step / d.astype(float)[:, None]), 1, 31).astype(int)
    sc[:, ::3] *= -1  # of both signs
    q = np.clip(np.rint(rows / (d.astype(float)[:, None] * sc)[:, :, None]) + 4, 0, 7).astype(int).reshape(len(rows), 256)
    mask = sum((q[:, 32 * j : 32 * j + 32] >> 2) << j for j in range(8)).astype(np.uint8)
    sc += 32
    low = (sc[:, :8] & 15) | (sc[:, 8:] & 15) << 4
    high = sum((sc[:, 4 * j : 4 * j + 4] >> 4) << 2 * j for j in range(4))
    blocks = np.concatenate([mask, two_bits(q & 3), low.astype(np.uint8), high.astype(np.uint8), bytes_of(d)], axis=1)
    return blocks.reshape(*data.shape[:-1], -1)


def nearest(w, scale):
    """[blocks, n, 32] to nibbles [blocks, n, 16]: inputs j and j + 16."""
    q = np.abs(w[..., None] / np.where(scale == 0, 1, scale)[..., None, None] - IQ4).argmin(axis=-1)
    return (q[..., :16] | q[..., 16:] << 4).astype(np.uint8)


def iq4_nl(data):
    rows = data.reshape(-1, 1, 32).astype(np.float64)
    d = above_zero(np.abs(rows).max(axis=2) / 113).astype(np.float16)
    blocks = np.concatenate([bytes_of(d[:, 0]), nearest(rows, d.astype(float))[:, 0]], axis=1)
    return blocks.reshape(*data.shape[:-1], -1)


def iq4_xs(data):
    rows = data.reshape(-1, 8, 32).astype(np.float64)
    step = np.abs(rows).max(axis=2) / 113
    d = above_zero(step.max(axis=1) / 31).astype(np.float16)
    sc = np.clip(np.rint(step / d.astype(float)[:, None]), 1, 31).astype(int)
    sc[:, ::3] *= -1
    q = nearest(rows, d.astype(float)[:, None] * sc).reshape(len(rows), 128)
    sc += 32
    high = sum((sc[:, j] >> 4) << 2 * j for j in range(8)).astype("<u2")[:, None].view(np.uint8)
    low = ((sc[:, ::2] & 15) | (sc[:, 1::2] & 15) << 4).astype(np.uint8)
    blocks = np.concatenate([bytes_of(d), high, low, q], axis=1)
    return blocks.reshape(*data.shape[:-1], -1)


BY_TYPE = {Q.Q5_K: q5_k, Q.Q2_K: q2_k, Q.Q3_K: q3_k, Q.IQ4_NL: iq4_nl, Q.IQ4_XS: iq4_xs}
