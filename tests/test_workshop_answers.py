"""Answers that learners might hand in: wrong ones, each refused with a hint of its own, and right ones that look unusual.
The wrong ones are written as learners write, and not as the checks write their own examples of a mistake."""
import math

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from course_checks import CHECKS

from ptacl.course.judging import Hint

WRONG = []  # (exercise, answer, words of its hint)


def wrong(exercise, words, answer=None):
    "Note a wrong answer; also as a decorator."
    def note(f):
        WRONG.append((exercise, f, words))
        return f
    return note(answer) if answer else note


def said(exercise, answer):
    "The hint that an answer gets; empty where it passes."
    try:
        CHECKS[exercise](answer)
    except Hint as hint:
        return str(hint)
    return ""


# --- session 1 -------------------------------------------------------------------------------------------------------------

wrong("heart_rate", "rounded", lambda r: round(60 / float(r[~r.isnan()].diff().mean())))
wrong("heart_rate", "cut to a whole number", lambda r: int(60 / np.nanmean(np.diff(r.numpy()))))
wrong("heart_rate", "the single beats' rates", lambda r: float(np.nanmean(60 / np.diff(r.numpy()))))
wrong("heart_rate", "n − 1 intervals between them", lambda r: 60 * len(r[r > 0]) / float(r[r > 0][-1] - r[r > 0][0]))
wrong("heart_rate", "the median", lambda r: 60 / np.nanmedian(np.diff(r.numpy())))
wrong("heart_rate", "only the first interval", lambda r: 60 / float(r[1] - r[0]))
wrong("heart_rate", "beats per second", lambda r: 1 / np.nanmean(np.diff(r.numpy())))
wrong("heart_rate", "divided by the last R-peak", lambda r: 60 * (r.isfinite().sum() - 1) / np.nanmax(r.numpy()))
wrong("heart_rate", "a text", lambda r: f"{60 / np.nanmean(np.diff(r.numpy())):.0f}")
wrong("heart_rate", "is always 72", lambda r: 72)
wrong("heart_rate", "one number was asked", lambda r: 60 / r[r.isfinite()].diff())
wrong("heart_rate", "without brackets", lambda r: [60 / float(r[r.isfinite()].diff().mean())])
wrong("heart_rate", "the padding is no R-peak", lambda r: 60 * len(r) / 10)
wrong("heart_rate", "begin with r_peaks = r_peaks.numpy()", lambda r_peaks: 60 / np.diff(r_peaks[~np.isnan(r_peaks)]).mean())
wrong("heart_rate", "NaN was replaced by 0", lambda r: 60 / np.diff(np.nan_to_num(r.numpy())).mean())


@wrong("heart_rate", "changes the array")
def fills_the_padding(r_peaks):
    bad = ~r_peaks.isfinite()
    r_peaks[bad] = 0
    return 60 * ((~bad).sum() - 1) / (r_peaks.max() - r_peaks[0])


wrong("ejection_fraction", "round() does not take tensors", lambda v: round(100 * (v.max() - v.min()) / v.max()))
wrong("ejection_fraction", "rounded", lambda v: round(float(100 * (v.max() - v.min()) / v.max())))
wrong("ejection_fraction", "begin with volumes = volumes.numpy()", lambda volumes: 100 * (np.max(volumes) - np.min(volumes)) / np.max(volumes))
wrong("ejection_fraction", "brackets", lambda v: 100 * (v.max() - v.min() / v.max()))
wrong("ejection_fraction", "counts positive", lambda v: 100 * (min(v) - max(v)) / max(v))
wrong("ejection_fraction", "the middle of the beat", lambda v: 100 * (v.max() - v[len(v) // 2]) / v.max())
wrong("ejection_fraction", "stroke volume", lambda v: max(v.tolist()) - min(v.tolist()))
wrong("frame_at", "times frames − 1", lambda t, rr, frames: int((t / rr % 1) * (frames - 1)))
wrong("frame_at", "counted from 1", lambda t, rr, frames: math.floor(t / rr % 1 * frames) + 1)
wrong("frame_at", "rounded up", lambda t, rr, frames: math.ceil(t / rr % 1 * frames))
wrong("frame_at", "rounded to the nearest", lambda t, rr, frames: int(t / rr % 1 * frames + 0.5))
wrong("frame_at", "cuts towards 0, so before the R-peak", lambda t, rr, frames: int(t / rr * frames) % frames)
wrong("frame_at", "cuts towards 0, so before the R-peak", lambda t, rr, frames: math.trunc(frames * t / rr) % frames)
wrong("frame_at", "decimal point", lambda t, rr, frames: np.floor(t / rr % 1 * frames))
wrong("frame_at", "t < 0", lambda t, rr, frames: int(math.fmod(t, rr) / rr * frames))
wrong("frame_at", "written into the function", lambda t, rr, frames: int((t % rr) / rr * 50))
wrong("frame_at", "not divided by rr", lambda t, rr, frames: int((t % rr) * frames))
wrong("frame_at", "do not stay in the last frame", lambda t, rr, frames: min(frames - 1, int(frames * t / rr)))

# --- session 2 -------------------------------------------------------------------------------------------------------------

wrong("band", "cuts the decimals off", lambda j, fs: (fs // 2 ** (j + 1), fs // 2**j))
wrong("band", "one level too low", lambda j, fs: (fs / 2 / 2 ** (j + 1), fs / 2 / 2**j))
wrong("band", "not a multiple of j", lambda j, fs: (fs / 2 / (j + 1), fs / 2 / j))
wrong("band", "that is the approximation", lambda j, fs: [0, fs / 2**j])
wrong("band", "one number came", lambda j, fs: fs / 2**j)
wrong("band", "a power is written **", lambda j, fs: (fs / 2 ^ (j + 1), fs / 2 ^ j))
wrong("soft_threshold", "negative coefficients grow", lambda c, lam: np.where(abs(c) > lam, c - lam, 0))
wrong("soft_threshold", "small coefficients stay", lambda c, lam: np.where(c > lam, c - lam, np.where(c < -lam, c + lam, c)))
wrong("soft_threshold", "what is taken away", lambda c, lam: np.maximum(np.minimum(c, lam), -lam))
wrong("soft_threshold", "take one number", lambda c, lam: np.array([np.sign(x) * max(abs(x) - lam, 0) for x in c]))  # rows
wrong("soft_threshold", "np.maximum compares", lambda c, lam: np.sign(c) * np.max(abs(c) - lam, 0))
wrong("soft_threshold", "of just λ", lambda c, lam: np.where(c > lam, c - lam, np.where(c < -lam, c + lam, np.where(abs(c) < lam, 0, c))))


@wrong("soft_threshold", "changes the array")
def in_place(c, lam):
    c[abs(c) < lam] = 0
    return c - np.sign(c) * lam


def bands(ecg, drop, wavelet="db6", level=8):
    c = pywt.wavedec(ecg, wavelet, level=level)
    for i in drop: c[i] = np.zeros_like(c[i])
    return pywt.waverec(c, wavelet)[..., :ecg.shape[-1]]


wrong("clean", "one sample more", lambda ecg, fs: pywt.waverec([0 * c if i in (0, 7, 8) else c
      for i, c in enumerate(pywt.wavedec(ecg, "db6", level=8))], "db6"))
wrong("clean", "detail 2 is still there", lambda ecg, fs: bands(ecg, [0, -1]))
wrong("clean", "another wavelet", lambda ecg, fs: bands(ecg, [0, -2, -1], "db4"))
wrong("clean", "too few levels", lambda ecg, fs: bands(ecg, [0, -2, -1], level=6))


def typed(*places, zero=0):
    "What a beginner types: a number in an array's place."
    def answer(ecg, fs=500):
        c = pywt.wavedec(ecg, "db6", level=8)
        for place in places: c[place] = zero
        return pywt.waverec(c, "db6")[..., :ecg.shape[-1]]
    return answer


wrong("clean", "each entry of the list is an array", typed(0, -2, -1))
wrong("clean", "each entry of the list is an array", typed(-1, zero=0.0))
wrong("clean", "each entry of the list is an array", typed(0, zero=np.zeros(1)))
wrong("clean", "detail 8 is gone too", lambda ecg, fs: bands(ecg, [0, 1, -2, -1]))
wrong("clean", "not places in the list", lambda ecg, fs: bands(ecg, [8, 2, 1]))
wrong("clean", "these are the coefficients", lambda ecg, fs: [0 * c if i in (0, 7, 8) else c
      for i, c in enumerate(pywt.wavedec(ecg, "db6", level=8))])
wrong("zscore", "keepdims=True", lambda ecg: (ecg - ecg.mean(1)) / ecg.std(1))
wrong("zscore", "brackets", lambda ecg: ecg - ecg.mean() / ecg.std())
wrong("zscore", "between 0 and 1", lambda ecg: (ecg - ecg.min()) / (ecg.max() - ecg.min()))
wrong("zscore", "at each moment", lambda ecg: (ecg - ecg.mean(axis=0)) / ecg.std(axis=0))
wrong("zscore", "its own mean: the SD", lambda ecg: (ecg - ecg.mean(1)[:, None]) / ecg.std())

# --- session 3 -------------------------------------------------------------------------------------------------------------


def peaks(signal, threshold, wait):  # the highest sample within `wait` samples to either side
    return np.array([i for i in np.flatnonzero(signal > threshold) if signal[i] == signal[max(0, i - wait):i + wait + 1].max()])


wrong("r_peaks", "at 100 Hz beats are missed", lambda signal, fs: peaks(signal, 0.6 * signal.max(), 100) / fs)
wrong("r_peaks", "sampling rate is ignored", lambda signal, fs: peaks(signal, 0.6 * signal.max(), int(0.2 * fs)) / 500)
wrong("r_peaks", "milliseconds", lambda signal, fs: 1000 * peaks(signal, 0.6 * signal.max(), int(0.2 * fs)) / fs)
wrong("r_peaks", "R′", lambda signal, fs: peaks(signal, 0.6 * signal.max(), int(0.1 * fs)) / fs)
wrong("r_peaks", "index 0", lambda signal, fs: (peaks(signal, 0.6 * signal.max(), int(0.2 * fs)) + 5) / fs)
wrong("r_peaks", "one number for every sample", lambda signal, fs: signal > 0.6 * signal.max())
wrong("r_peaks", "must ascend", lambda signal, fs: peaks(signal, 0.6 * signal.max(), int(0.2 * fs))[::-1] / fs)
wrong("r_peaks", "refractory time longer than a beat", lambda signal, fs: peaks(signal, 0.6 * signal.max(), int(1.2 * fs)) / fs)


@wrong("r_peaks", "where the signal crosses the threshold")
def crossing(signal, fs):
    up = np.flatnonzero((signal[1:] > 0.6 * signal.max()) & (signal[:-1] <= 0.6 * signal.max())) + 1
    return up / fs


def rested(signal, fs, share=0.5, wait=0.2): # the first sample above the threshold, then a rest
    found = []
    for i in np.flatnonzero(signal > share * signal.max()):
        if not found or i > found[-1] + wait * fs: found.append(int(i))
    return np.array(found)


def tops(signal, fs): return peaks(signal, 0.5 * signal.max(), int(0.2 * fs))


for share in (0.4, 0.5, 0.6): wrong("r_peaks", "take the highest sample", lambda signal, fs, share=share: rested(signal, fs, share) / fs)
wrong("r_peaks", "6 of 6 times are NaN", lambda signal, fs: tops(signal, fs) * np.nan)
wrong("r_peaks", "heights of R-peaks", lambda signal, fs: signal[tops(signal, fs)])
wrong("r_peaks", "intervals between R-peaks", lambda signal, fs: np.diff(tops(signal, fs)) / fs)
wrong("r_peaks", "minutes", lambda signal, fs: tops(signal, fs) / fs / 60)
wrong("r_peaks", "// cuts the decimals off", lambda signal, fs: tops(signal, fs) // fs)
wrong("r_peaks", "hundredths of a second", lambda signal, fs: np.round(tops(signal, fs) / fs, 2))
wrong("r_peaks", "where that piece begins", lambda signal, fs: [signal[i:i + fs // 5].argmax() / fs for i in rested(signal, fs)])
wrong("r_peaks", "refractory time longer than a beat", lambda signal, fs: peaks(signal, 0.5 * signal.max(), 2 * fs) / fs)
wrong("r_peaks", "refractory time longer than a beat", lambda signal, fs: rested(signal, fs, wait=2) / fs)
wrong("r_peaks", "does the search begin late", lambda signal, fs: tops(signal, fs)[1:] / fs)


@wrong("phase", "wrong side of searchsorted")
def left(t, r_peaks):
    i = np.searchsorted(r_peaks.numpy(), t.numpy())
    out = np.full(len(t), np.nan)
    for n, (x, k) in enumerate(zip(t, i)):
        if 0 < k < len(r_peaks): out[n] = (x - r_peaks[k - 1]) / (r_peaks[k] - r_peaks[k - 1])
    return out


def phases(t, r_peaks, scale=1.0, unknown=np.nan, skip=False, closed=False):
    out = []
    for x in t.tolist():
        beat = [(a, b) for a, b in zip(r_peaks.tolist(), r_peaks.tolist()[1:]) if a <= x < b]
        if beat: out.append(scale * (x - beat[0][0]) / (beat[0][1] - beat[0][0]))
        elif not skip: out.append(unknown)
    return out


wrong("phase", "0 where no beat is known", lambda t, r_peaks: phases(t, r_peaks, unknown=0.0))
wrong("phase", "degrees", lambda t, r_peaks: phases(t, r_peaks, 360))
wrong("phase", "on one side only", lambda t, r: [(x - r[r <= x][-1]) / (r[r > x][0] - r[r <= x][-1]) for x in t])
wrong("phase", "on one side only", lambda t, r: (lambda i: (t - r[i - 1]) / (r[i] - r[i - 1]))(torch.searchsorted(r, t, right=True)))
wrong("phase", "left out", lambda t, r_peaks: phases(t, r_peaks, skip=True))
wrong("phase", "None in the answer", lambda t, r_peaks: phases(t, r_peaks, unknown=None))


def indexed(top, below, clip=True): # r_peaks[i + top] is taken off, r_peaks[i + below[1]] - r_peaks[i + below[0]] divides
    def answer(t, r_peaks):
        i = torch.searchsorted(r_peaks, t, right=True)
        at = lambda by: r_peaks[(i + by).clamp(0, len(r_peaks) - 1)] if clip else r_peaks[i + by]
        out = (t - at(top)) / (at(below[1]) - at(below[0]))
        return torch.where((i > 0) & (i < len(r_peaks)), out, torch.nan)
    return answer


for clip in (True, False):
    wrong("phase", "one R-peak too late", indexed(0, (0, 1), clip))
    wrong("phase", "the beat that follows", indexed(-1, (0, 1), clip))
wrong("phase", "the median beat", lambda t, r_peaks: [(x - r_peaks[k - 1]) / np.median(np.diff(r_peaks)) if 0 < k < len(r_peaks) else math.nan
      for x, k in zip(t, np.searchsorted(r_peaks, t, side="right"))])
wrong("phase", "divided by the mean beat", lambda t, r_peaks: [(x - a) / float(r_peaks.diff().mean()) if a is not None else np.nan
      for x, a in ((x, max((r for r in r_peaks.tolist() if r <= x), default=None) if x < r_peaks[-1] else None) for x in t.tolist())])


def beats_of(tokens, r_peaks, width, T, shift=0.5, half=0.5):
    at = lambda a, b, k: min(max((a + (k + shift) / T * (b - a)) / width - half, 0), len(tokens) - 1)
    def read(x):
        low = int(x)
        return tokens[low] + (x - low) * (tokens[min(low + 1, len(tokens) - 1)] - tokens[low])
    return torch.stack([torch.stack([read(float(at(a, b, k))) for k in range(T)]) for a, b in zip(r_peaks[:-1], r_peaks[1:])])


wrong("segment", "not averaged", lambda *a: beats_of(*a))
wrong("segment", "half a segment late", lambda *a: beats_of(*a, shift=1).mean(0))
wrong("segment", "half a token late", lambda *a: beats_of(*a, half=0).mean(0))
wrong("segment", "divided by the number of R-peaks", lambda tokens, r, w, T: beats_of(tokens, r, w, T).sum(0) / len(r))
wrong("segment", "not over the beats", lambda *a: beats_of(*a).mean(1))


def read_by(weigh, begin=1.0, where=lambda k, T: (k + 0.5) / T, skip=0): # weigh: token before, after, share -> vector
    def answer(tokens, r_peaks, width, T):
        beats = []
        for a, b in list(zip(r_peaks.tolist(), r_peaks.tolist()[1:]))[skip:]:
            at = [min(max((begin * a + where(k, T) * (b - a)) / width - 0.5, 0), len(tokens) - 1) for k in range(T)]
            beats.append(torch.stack([weigh(tokens[int(x)], tokens[min(int(x) + 1, len(tokens) - 1)], x - int(x)) for x in at]))
        return torch.stack(beats).mean(0)
    return answer


def between(x, y, share): return (1 - share) * x + share * y


wrong("segment", "the weights are exchanged", read_by(lambda x, y, share: share * x + (1 - share) * y))
wrong("segment", "the token before in the place of both", read_by(lambda x, y, share: x))
wrong("segment", "k / (T − 1)", read_by(between, where=lambda k, T: k / (T - 1)))
wrong("segment", "the first beat is left out", read_by(between, skip=1))
wrong("segment", "a beat begins at its R-peak a", read_by(between, begin=0.0))

# --- session 4 -------------------------------------------------------------------------------------------------------------


@wrong("random_mask", "one long gap")
def one_block(B, N, ratio):
    n = round(N * ratio)
    start = torch.randint(N - n + 1, (B, 1))
    return (torch.arange(N) >= start) & (torch.arange(N) < start + n)


wrong("random_mask", "only moved along", lambda B, N, ratio: torch.stack([(torch.rand(N,
      generator=torch.Generator().manual_seed(3)).argsort().argsort()
      < round(N * ratio)).roll(int(torch.randint(N, ()))) for _ in range(B)]))
wrong("random_mask", "rounds up", lambda B, N, ratio: torch.rand(B, N).argsort(1).argsort(1) < N * ratio)
wrong("random_mask", "rounds up", lambda B, N, ratio: (lambda x: x <= x.quantile(ratio, dim=1, keepdim=True))(torch.rand(B, N)))
wrong("random_mask", "an independent coin", lambda B, N, ratio: torch.randint(2, (B, N)).bool())
wrong("random_mask", "not of one length", lambda B, N, ratio: [torch.rand(N).argsort()[:N // 2 + b].tolist() for b in range(B)])
wrong("random_mask", "int() cuts off", lambda B, N, ratio: torch.rand(B, N).argsort(1).argsort(1) < int(N * ratio))
wrong("random_mask", "one token too many", lambda B, N, ratio: torch.rand(B, N).argsort(1).argsort(1) <= round(N * ratio))
wrong("random_mask", "drawn twice", lambda B, N, ratio: torch.zeros(B, N).scatter(1, torch.randint(N, (B, round(N * ratio))), 1).bool())
wrong("random_mask", "the numbers of tokens", lambda B, N, ratio: torch.rand(B, N).argsort(1)[:, :round(N * ratio)])
wrong("random_mask", "True for hidden", lambda B, N, ratio: (torch.rand(B, N).argsort(1).argsort(1) < round(N * ratio)).float())
wrong("random_mask", "axes are exchanged", lambda B, N, ratio: torch.rand(N, B).argsort(0).argsort(0) < round(N * ratio))
wrong("patchify", "keep the first axis", lambda ecg, p: ecg.reshape(-1, p))
wrong("patchify", "an array was asked", lambda ecg, p: ecg.reshape(len(ecg), -1, p).tolist())
wrong("patchify", "25 samples are written", lambda ecg, p: ecg.reshape(len(ecg), -1, 25))
wrong("patchify", "not the number of patches", lambda ecg, p: ecg.reshape(len(ecg), 12 * p, -1))
wrong("masked_mse", "no gradient flows", lambda guess, target, hidden: (guess.detach() - target)[hidden].pow(2).mean())
wrong("masked_mse", "no gradient flows", lambda guess, target, hidden: float((guess - target)[hidden].pow(2).mean()))
wrong("masked_mse", "write it with torch", lambda guess, target, hidden: np.mean((guess - target)[hidden] ** 2))
wrong("masked_mse", "square root", lambda guess, target, hidden: (guess - target)[hidden].pow(2).mean() ** 0.5)
wrong("masked_mse", "the patients' means", lambda guess, target, hidden: sum(F.mse_loss(g[h], t[h])
      for g, t, h in zip(guess, target, hidden)) / len(guess))
wrong("masked_mse", "each has p values", lambda guess, target, hidden: ((guess - target) ** 2)[hidden].sum() / hidden.sum())

# --- session 5 -------------------------------------------------------------------------------------------------------------


def log_p(a, b, tau, unit=True): return ((F.normalize(a, dim=1) @ F.normalize(b, dim=1).T if unit else a @ b.T) / tau).log_softmax(1)


wrong("cosine", "a distance", lambda a, b: 1 - F.cosine_similarity(a[:, None], b[None], dim=-1))
wrong("cosine", "lie along the columns", lambda a, b: (a @ b.T) / (a.norm(dim=1) * b.norm(dim=1)))
wrong("cosine", "keepdims=True", lambda a, b: a / a.norm(dim=1) @ (b / b.norm(dim=1)).T)
wrong("cosine", "a square root is missing", lambda a, b: a @ b.T / ((a * a).sum(1)[:, None] * (b * b).sum(1)))
wrong("cosine", "a correlation", lambda a, b: torch.corrcoef(torch.cat([a, b]))[:len(a), len(a):])
wrong("info_nce", "z_cmr gets no gradient", lambda z_ecg, z_cmr, tau: -log_p(z_ecg, z_cmr.detach(), tau).diagonal().mean())
wrong("info_nce", "no gradient flows", lambda z_ecg, z_cmr, tau: torch.tensor(float(-log_p(z_ecg, z_cmr, tau).diagonal().mean())))
wrong("info_nce", "the gradient of z_ecg is not", lambda z_ecg, z_cmr, tau: F.cross_entropy(
      z_ecg / z_ecg.norm(dim=1, keepdim=True).detach() @ F.normalize(z_cmr, dim=1).T / tau, torch.arange(len(z_ecg))))
wrong("info_nce", "own cine is left out", lambda z_ecg, z_cmr, tau: -torch.stack([s[i] - torch.cat([s[:i], s[i + 1:]]).logsumexp(0) for i, s in
      enumerate(F.normalize(z_ecg, dim=1) @ F.normalize(z_cmr, dim=1).T / tau)]).mean())
wrong("info_nce", "softmax twice", lambda z_ecg, z_cmr, tau: F.cross_entropy(log_p(z_ecg, z_cmr, tau).exp(), torch.arange(len(z_ecg))))
wrong("info_nce", "τ divides the loss", lambda z_ecg, z_cmr, tau: -log_p(z_ecg, z_cmr, 1).diagonal().mean() / tau)
wrong("info_nce", "base 2", lambda z_ecg, z_cmr, tau: -(log_p(z_ecg, z_cmr, tau).exp().diagonal().log2()).mean())
wrong("info_nce", "takes log_softmax", lambda z_ecg, z_cmr, tau: F.nll_loss(log_p(z_ecg, z_cmr, tau).exp(), torch.arange(len(z_ecg))))
wrong("info_nce", "its own number, and not 0", lambda z_ecg, z_cmr, tau: F.nll_loss(log_p(z_ecg, z_cmr, tau), torch.zeros(len(z_ecg)).long()))
wrong("info_nce", "a binary cross-entropy", lambda z_ecg, z_cmr, tau: F.binary_cross_entropy_with_logits(
      F.normalize(z_ecg, dim=1) @ F.normalize(z_cmr, dim=1).T / tau, torch.eye(len(z_ecg))))
wrong("symmetric", "the larger of the two", lambda a, b, tau: torch.maximum(-log_p(a, b, tau).diagonal().mean(), -log_p(b, a, tau).diagonal().mean()))
wrong("symmetric", "brackets", lambda a, b, tau: -log_p(a, b, tau).diagonal().mean() - log_p(b, a, tau).diagonal().mean() / 2)
wrong("symmetric", "b gets no gradient", lambda a, b, tau: -(log_p(a, b.detach(), tau) + log_p(b.detach(), a, tau)).diagonal().mean() / 2)
wrong("own_rank", "its own similarity, diagonal()[:, None]", lambda s: 1 + (s > s.diagonal()).sum(1))
wrong("own_rank", "argsort says which cine", lambda s: torch.argsort(-s, dim=1).diagonal())
wrong("own_rank", "the ranks of all cines", lambda s: torch.argsort(torch.argsort(-s, dim=1), dim=1) + 1)
wrong("own_rank", "its place was asked", lambda s: (s.argmax(1) == torch.arange(len(s))).float())

# --- session 6 -------------------------------------------------------------------------------------------------------------


def weights(T, sigma, step=None):
    d = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) / (step or T)
    P = np.exp(-d**2 / (2 * sigma**2)) if sigma else np.eye(T)
    return torch.tensor(P / P.sum(1, keepdims=True), dtype=torch.float32)


wrong("alignment_matrix", "the squares of a row", lambda T, sigma: F.normalize(weights(T, sigma), dim=1))
wrong("alignment_matrix", "give it the exponent", lambda T, sigma: (weights(T, sigma) / weights(T, sigma).max(1, keepdim=True).values).softmax(1))
wrong("alignment_matrix", "13 is written", lambda T, sigma: weights(T, sigma, 13))
wrong("alignment_matrix", "below 1/T is narrow", lambda T, sigma: weights(T, sigma if sigma >= 1 / T else 0))
wrong("alignment_matrix", "divided by T − 1", lambda T, sigma: weights(T, sigma, T - 1))
wrong("alignment_matrix", "counted in segments", lambda T, sigma: weights(T, sigma, 1))
wrong("alignment_matrix", "soft where hard was asked", lambda T, sigma: weights(T, sigma or 0.4))
wrong("alignment_matrix", "rows do not sum to 1", lambda T, sigma: weights(T, sigma) / weights(T, sigma).max(1, keepdim=True).values)
wrong("circular", "the longer way around", lambda T, sigma: torch.softmax(-0.5 * (torch.maximum(*(lambda d: (d, 1 - d))(
      (torch.arange(T)[:, None] - torch.arange(T)).abs() / T)) / sigma) ** 2, 1))


def asks(a, b, P, tau): return -(P * (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT / tau).log_softmax(-1)).sum(-1).mean()


wrong("local_loss", "the weights of the columns", lambda a, b, s, tau: (asks(a, b, weights(a.shape[1], s), tau) + asks(b, a, weights(a.shape[1],
      s).T, tau)) / 2)
wrong("local_loss", "@ in the place of *", lambda a, b, s, tau: sum(-(weights(a.shape[1], s) @ (F.normalize(x, dim=2)
      @ F.normalize(y, dim=2).mT / tau).log_softmax(2)).sum(2).mean() for x, y in ((a, b), (b, a))) / 2)
wrong("local_loss", "Kullback-Leibler", lambda a, b, s, tau: sum(F.kl_div((F.normalize(x, dim=2) @ F.normalize(y, dim=2).mT / tau).log_softmax(2),
      weights(a.shape[1], s).expand(len(a), -1, -1), reduction="none").sum(2).mean() for x, y in ((a, b), (b, a))) / 2)
wrong("local_loss", "torch.as_tensor", lambda a, b, s, tau: -(weights(a.shape[1], s).numpy() * (a @ b.mT).log_softmax(2)).sum(2).mean())
wrong("local_loss", "flatten(0, 1)", lambda a, b, s, tau: F.cross_entropy(F.normalize(a, dim=2) @ F.normalize(b, dim=2).mT / tau,
      torch.arange(a.shape[1])))
wrong("local_loss", "below 1/T is narrow", lambda a, b, s, tau: sum(asks(x, y, weights(a.shape[1], s * (s >= 1 / a.shape[1])), tau)
      for x, y in ((a, b), (b, a))) / 2)
wrong("local_loss", "b gets no gradient", lambda a, b, s, tau: sum(asks(x, y, weights(a.shape[1], s), tau)
      for x, y in ((a, b.detach()), (b.detach(), a))) / 2)
wrong("local_loss", "no gradient flows", lambda a, b, s, tau: sum(asks(x, y, weights(a.shape[1], s), tau) for x, y in ((a, b), (b, a))).item() / 2)
wrong("local_loss", "F.normalize takes axis 1", lambda a, b, s, tau: sum(-(weights(a.shape[1], s) * (F.normalize(x) @ F.normalize(y).mT
      / tau).log_softmax(-1)).sum(-1).mean() for x, y in ((a, b), (b, a))) / 2)


def one_axis_wrong(*axes):
    def answer(z_ecg, z_cmr, sigma, tau):
        S, P = F.normalize(z_ecg, dim=2) @ F.normalize(z_cmr, dim=2).mT / tau, weights(z_ecg.shape[1], sigma)
        return sum(-(P * x.log_softmax(axis)).sum(2).mean() for x, axis in zip((S, S.mT), axes)) / 2
    return answer


wrong("local_loss", "softmax where segments ask", one_axis_wrong(1, 2))
wrong("local_loss", "softmax where frames ask", one_axis_wrong(2, 1))
wrong("local_loss", "the larger of the two", lambda a, b, s, tau: max(asks(x, y, weights(a.shape[1], s), tau) for x, y in ((a, b), (b, a))))
wrong("local_loss", "the two directions are added", lambda a, b, s, tau: sum(asks(x, y, weights(a.shape[1], s), tau) for x, y in ((a, b), (b, a))))

# --- session 7 -------------------------------------------------------------------------------------------------------------


def steps(maps): return np.array([[int(row.argmax()) - k for k, row in enumerate(m)] for m in maps.numpy() if np.isfinite(m).all()])


wrong("within_one", "one is allowed", lambda maps: (abs(steps(maps)) <= 2).mean())
wrong("within_one", "count as misses", lambda maps: (abs(steps(maps)) <= 1).sum() / maps[..., 0].numel())
wrong("within_one", "percent", lambda maps: 100 * (abs(steps(maps)) <= 1).mean())


@wrong("within_one", "changes the array")
def fills_the_maps(maps):
    good = maps.isfinite().all((1, 2))
    maps[~good] = 0
    return (abs(steps(maps[good])) <= 1).mean()


wrong("phase_error", "no absolute value", lambda maps: np.minimum(steps(maps), maps.shape[-1] - steps(maps)).mean() / maps.shape[-1])
wrong("phase_error", "the longer way around", lambda maps: np.maximum(abs(steps(maps)), maps.shape[-1] - abs(steps(maps))).mean() / maps.shape[-1])
wrong("phase_error", "divided by T − 1", lambda maps: np.minimum(abs(steps(maps)), maps.shape[-1] - abs(steps(maps))).mean() / (maps.shape[-1] - 1))
wrong("delay", "no sign", lambda maps: abs(max(range(-(maps.shape[-1] // 2), (maps.shape[-1] + 1) // 2), key=lambda lag: float(
      np.trace(np.roll(np.nanmean(maps.numpy(), 0), -lag, 1))))))
wrong("delay", "one stray frame", lambda maps: steps(maps).mean())


def best_lag(m, lags): return max(lags, key=lambda lag: float(np.trace(np.roll(m, -lag, 1))))


def around(T): return range(-(T // 2), (T + 1) // 2)


def folded(maps, mean): # the best of lags 0 … T − 1, then brought between −T/2 and T/2
    m, T = mean(maps.numpy()), maps.shape[-1]
    best = int(np.argmax([np.trace(np.roll(m, -lag, 1)) for lag in range(T)]))
    return best - T if best > T // 2 else best


def each_delay(maps): return [best_lag(m, around(len(m))) for m in maps.numpy() if np.isfinite(m).all()]


wrong("delay", "a patient without a heartbeat is NaN", lambda maps: best_lag(maps.mean(0).numpy(), around(maps.shape[-1])))
wrong("delay", "a patient without a heartbeat is NaN", lambda maps: folded(maps, lambda m: m.mean(0)))
wrong("delay", "a patient without a heartbeat is NaN", lambda maps: maps.mean() * 0 + folded(maps, lambda m: np.nanmean(m, 0)))
wrong("delay", "the median of the best frames' offsets", lambda maps: (maps.nanmean(0).argmax(1) - torch.arange(maps.shape[-1])).median())
wrong("delay", "the most frequent delay", lambda maps: max(sorted(set(each_delay(maps))), key=each_delay(maps).count))
wrong("delay", "the median over patients", lambda maps: np.median(each_delay(maps)))

# --- session 8 -------------------------------------------------------------------------------------------------------------

wrong("r_squared", "never below 0", lambda y, pred: max(0, 1 - np.mean((y - pred) ** 2) / np.var(y)))
wrong("r_squared", "all too low must cost", lambda y, pred: 1 - np.var(y - pred) / np.var(y))
wrong("r_squared", "with ddof=1", lambda y, pred: 1 - np.mean((y - pred) ** 2) / np.var(y, ddof=1))
wrong("r_squared", "its own distance", lambda y, pred: 1 - sum((a - b) ** 2 / (a - y.mean()) ** 2 for a, b in zip(y, pred)))
wrong("r_squared", "the correlation", lambda y, pred: np.corrcoef(y, pred)[1, 0])
wrong("r_squared", "upside down", lambda y, pred: 1 - np.var(y) / np.mean((y - pred) ** 2))
wrong("probe", "not added to the predictions", lambda x, y, new: new @ np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0][:-1])
wrong("probe", "always the mean", lambda x, y, new: [y.mean()] * len(new))


def shares(q, c, y, k, first=0, tolerance=0.5, own=False, mark=-2):
    s = F.normalize(q, dim=1) @ F.normalize(c, dim=1).T
    if not own: s.fill_diagonal_(mark)
    return ((y[s.argsort(1, descending=True)[:, first:first + k]] - y[:, None]).abs() <= tolerance * y.std(correction=0)).float()


wrong("precision_at_k", "need not be the same", lambda q, c, y, k: shares(q, c, y, k, first=1, own=True).mean())
wrong("precision_at_k", "one standard deviation", lambda q, c, y, k: shares(q, c, y, k, tolerance=1).mean())
wrong("precision_at_k", "written into the function", lambda q, c, y, k: shares(q, c, y, 5).mean())
wrong("precision_at_k", "divide by k", lambda q, c, y, k: shares(q, c, y, k).sum(1).mean())
wrong("precision_at_k", "set to 0", lambda q, c, y, k: shares(q, c, y, k, mark=0).mean())


def test_one_wrong_number_is_told_without_a_place():
    "Where nothing is known of it: a number alone has no place."
    assert said("frame_at", lambda t, rr, n: 33 if t == 0.61 else int(t / rr % 1 * n)) == "not yet: the answer is 33, expected 14"


@pytest.mark.parametrize("exercise, answer, words", WRONG, ids=[f"{e}-{w[:28]}" for e, _, w in WRONG])
def test_a_wrong_answer_gets_its_own_hint(exercise, answer, words):
    assert words in (said(exercise, answer) or "it passes")


# --- answers that nobody prepared for: no hint is written for them ----------------------------------------------------------

UNFORESEEN = [
    ("heart_rate", lambda r: 120 / float(r[r > 0].diff().mean())), ("heart_rate", lambda r: float(r[r > 0].diff().mean()) + 60),
    ("ejection_fraction", lambda v: v.max() - v), ("ejection_fraction", lambda v: 100 * (v.max() - v.min()) / v.max() - 1),
    ("frame_at", lambda t, rr, n: [int(t / rr % 1 * n)] * 2), ("frame_at", lambda t, rr, n: 2 * int(t / rr % 1 * n)),
    ("band", lambda j, fs: (fs / 2 ** (j + 1), fs / 2**j, fs)), ("soft_threshold", lambda c, lam: (np.sign(c) * np.maximum(abs(c) - lam, 0))[::-1]),
    ("soft_threshold", lambda c, lam: np.sign(c) * np.maximum(abs(c) - lam, 0) + 1), ("zscore", lambda x: ((x - x.mean()) / x.std()).T),
    ("zscore", lambda x: 2 * (x - x.mean()) / x.std()), ("clean", lambda x, fs: bands(x, [0, 7, 8])[0]), ("clean",
      lambda x, fs: -bands(x, [0, 7, 8])),
    ("phase", lambda t, r: phases(t, r)[::-1]), ("phase", lambda t, r: phases(t, r, 0.5)), ("segment", lambda *a: beats_of(*a).mean(0).T),
    ("patchify", lambda x, p: x.reshape(len(x), -1, p).flip(2)), ("masked_mse", lambda g, t, h: 3 * (g - t)[h].pow(2).mean()),
    ("cosine", lambda a, b: F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 2), ("info_nce",
      lambda a, b, tau: -log_p(a, b, tau).diagonal().mean() + 1),
    ("own_rank", lambda s: s.argsort(1, descending=True)), ("symmetric", lambda a, b, tau: a.mean() * math.nan),
    ("alignment_matrix", lambda T, s: weights(T, s).flip(0)), ("local_loss", lambda a, b, s, tau: torch.zeros(())),
    ("within_one", lambda m: 0.5), ("phase_error", lambda m: math.inf), ("delay", lambda m: "2 frames"), ("r_squared", lambda y, p: y[99]),
    ("probe", lambda x, y, new: np.linalg.lstsq(x, y)[0] @ new), ("precision_at_k", lambda q, c, y, k: None),
]


def test_refusals_say_more_than_where_the_numbers_differ():
    "At most one refusal in ten names no more than the first difference, those that nobody foresaw among them."
    refusals = [said(exercise, answer) for exercise, answer, _ in WRONG] + [said(exercise, answer) for exercise, answer in UNFORESEEN]
    assert all(refusals)
    assert sum(hint.startswith("not yet") for hint in refusals) <= len(refusals) / 10
    foreign = [said(exercise, answer) for exercise, answer in UNFORESEEN]
    assert sum(hint.startswith("not yet") for hint in foreign) <= len(foreign) / 10, foreign


# --- right answers that look unusual ----------------------------------------------------------------------------------------

RIGHT = [
    ("heart_rate", lambda r: 60 / np.nanmean(np.diff(r))), ("heart_rate", lambda r: 60 / np.diff(np.asarray(r)[~np.isnan(np.asarray(r))]).mean()),
    ("ejection_fraction", lambda v: 100 * np.ptp(v.numpy()) / np.max(v.numpy())),
    ("r_peaks", lambda signal, fs: [i / fs for i in tops(signal, fs)]),
    ("r_peaks", lambda signal, fs: peaks(signal, 0.7 * signal.max(), int(0.25 * fs)) / fs),
    ("delay", lambda maps: torch.tensor([folded(maps, lambda m: np.nanmean(m, 0))])),
    ("segment", read_by(between)), ("phase", indexed(-1, (-1, 0))),
    ("heart_rate", lambda r: np.float32(60 * (np.isfinite(r.numpy()).sum() - 1) / (np.nanmax(r.numpy()) - np.nanmin(r.numpy())))),
    ("heart_rate", lambda r: torch.tensor([60.0], dtype=torch.float64) / r.double().diff().nanmean()),
    ("ejection_fraction", lambda v: 100 * (1 - sorted(v.tolist())[0] / sorted(v.tolist())[-1])),
    ("frame_at", lambda t, rr, frames: math.floor(t * frames / rr) % frames),
    ("frame_at", lambda t, rr, frames: torch.tensor(t / rr % 1 * frames).long()), ("frame_at", lambda t, rr, frames: np.int16(t % rr / rr * frames)),
    ("band", lambda j, fs: np.array([0.5, 1]) * fs / 2**j), ("band", lambda j, fs: [torch.tensor(fs / 2 ** (j + 1)), fs / 2**j]),
    ("soft_threshold", lambda c, lam: np.where(c > lam, c - lam, np.where(c < -lam, c + lam, 0))),
    ("soft_threshold", lambda c, lam: c - np.clip(c, -lam, lam)), ("soft_threshold", lambda c, lam: F.softshrink(torch.tensor(c), lam)),
    ("clean", lambda ecg, fs: np.stack([bands(lead, [0, 7, 8]) for lead in ecg])), ("clean",
      lambda ecg, fs: torch.tensor(bands(ecg.astype(float), [0, -1, -2]))),
    ("zscore", lambda ecg: (torch.tensor(ecg) - ecg.mean()) / torch.tensor(ecg).std()),
    ("r_peaks", lambda signal, fs: torch.tensor(peaks(signal, 0.5 * signal.max(), int(0.25 * fs)) / fs)),
    ("r_peaks", lambda signal, fs: __import__("scipy.signal").signal.find_peaks(signal, signal.max() / 2, distance=int(0.2 * fs))[0] / fs),
    ("phase", phases), ("phase", lambda t, r: np.interp(t, r, np.arange(len(r)), np.nan, np.nan) % 1 + np.where(t < r[-1], 0, np.nan)),
    ("segment", lambda *a: beats_of(*a).numpy().mean(0)),
    ("random_mask", lambda B, N, ratio: np.stack([np.random.permutation(N) < round(N * ratio) for _ in range(B)])),
    ("random_mask", lambda B, N, ratio: torch.zeros(B, N, dtype=torch.bool).scatter(1, torch.rand(B, N).topk(round(N * ratio), 1).indices, True)),
    ("patchify", lambda ecg, p: ecg.unfold(2, p, p).flatten(1, 2)), ("patchify",
      lambda ecg, p: torch.cat([torch.stack(lead.split(p, 1), 1) for lead in ecg.unbind(1)], 1)),
    ("masked_mse", lambda guess, target, hidden: F.mse_loss(guess[hidden], target[hidden])),
    ("masked_mse", lambda guess, target, hidden: ((guess - target) ** 2 * hidden[..., None]).sum() / (hidden.sum() * guess.shape[-1])),
    ("cosine", lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=-1)), ("cosine",
      lambda a, b: [[float(x @ y / x.norm() / y.norm()) for y in b] for x in a]),
    ("info_nce", lambda a, b, tau: -log_p(a.double(), b.double(), tau).diagonal().mean()),
    ("info_nce", lambda a, b, tau: sum(s.logsumexp(0) - s[i] for i, s in enumerate(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / tau)) / len(a)),
    ("symmetric", lambda a, b, tau: -(log_p(a, b, tau) + log_p(b, a, tau)).diagonal().mean() / 2),
    ("own_rank", lambda s: [sorted(row, reverse=True).index(row[i]) + 1 for i, row in enumerate(s.tolist())]),
    ("own_rank", lambda s: (s.argsort(1, descending=True) == torch.arange(len(s))[:, None]).int().argmax(1) + 1.0),
    ("alignment_matrix", lambda T, sigma: list(weights(T, sigma))),
    ("alignment_matrix", weights), ("alignment_matrix", lambda T, sigma: weights(T, sigma).numpy().astype(np.float64)),
    ("local_loss", lambda a, b, s, tau: torch.stack([asks(x[None], y[None], weights(len(x), s), tau) + asks(y[None], x[None], weights(len(x), s),
      tau) for x, y in zip(a, b)]).mean() / 2),
    ("within_one", lambda maps: (abs(steps(maps)) <= 1).mean()),
    ("phase_error", lambda maps: np.minimum(steps(maps) % maps.shape[-1], -steps(maps) % maps.shape[-1]).mean() / maps.shape[-1]),
    ("delay", lambda maps: np.float64(max(range(-(maps.shape[-1] // 2), (maps.shape[-1] + 1) // 2),
      key=lambda lag: float(np.trace(np.roll(np.nanmean(maps.numpy(), 0), -lag, 1)))))),
    ("r_squared", lambda y, pred: 1 - np.mean((y - pred) ** 2) / np.var(y)),
    ("probe", lambda x, y, new: (new - x.mean(0)) @ np.linalg.lstsq(x - x.mean(0), y - y.mean(), rcond=None)[0] + y.mean()),
    ("precision_at_k", lambda q, c, y, k: shares(q, c, y, k).mean().item()), ("precision_at_k",
      lambda q, c, y, k: shares(q, c, y, k, tolerance=0.503).mean()),
]


@pytest.mark.parametrize("exercise, answer", RIGHT, ids=[f"{e}-{i}" for i, (e, _) in enumerate(RIGHT)])
def test_a_right_answer_passes_whatever_it_looks_like(exercise, answer):
    assert said(exercise, answer) == ""


@pytest.mark.parametrize("exercise", CHECKS)
def test_an_empty_answer_is_said_to_be_not_written_yet(exercise):
    def nothing(*args): raise NotImplementedError()
    assert "nothing is not written yet" in said(exercise, nothing)


def test_the_new_wrong_answers_are_many_and_touch_every_exercise():
    assert len(WRONG) >= 60 and {e for e, _, _ in WRONG} == set(CHECKS)
