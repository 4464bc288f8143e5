"""One-D-Piece's recipes (arXiv:2501.10064): TiTok's two stages at larger batches, a random number of tokens in both.

Weights of the linear layers before either transformer are decayed, unlike TiTok's.
"""

from __future__ import annotations

from imgtok.presets.onedpiece import with_nested_dropout
from imgtok.presets.titok import two_stage
from imgtok.train.proxy import DecoderTraining, ProxyTraining
from imgtok.train.recipes import titok


def first_stage(size: str) -> ProxyTraining:
    return titok.first_stage(with_nested_dropout(two_stage(size, 256)), batch_size=1024, undecayed=titok.TABLES)


def s256() -> ProxyTraining:
    return first_stage("s")


def b256() -> ProxyTraining:
    return first_stage("b")


def l256() -> ProxyTraining:
    return first_stage("l")


def second_stage() -> DecoderTraining:
    return titok.second_stage(batch_size=512, undecayed=titok.TABLES)


PROXIES = {"one-d-piece-s256-stage1": s256, "one-d-piece-b256-stage1": b256, "one-d-piece-l256-stage1": l256}
DECODERS = {"one-d-piece-stage2": second_stage}
