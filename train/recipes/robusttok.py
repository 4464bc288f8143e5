"""RobusTok (arXiv:2503.08354, arXiv:2509.12474), XQ-GAN (arXiv:2412.01762) and ImageFolder (arXiv:2410.01756).

As their published configurations have them: ImageNet, 200 epochs of batch 1024; L2 + LPIPS, 0.1 of the semantic loss,
from an epoch on 0.5 times the adaptive weight of a discriminator on frozen features, which LeCam holds back.

Ours differ: encoder and decoder begin at random, not as DINOv2; codes that nobody uses are re-seeded; images whose last
scales are left out are drawn, not the first of a batch; the learning rate falls with every step, not every epoch, and
warms up from 0. The discriminator's loss is not halved, which AdamW does not notice.
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.presets.robusttok import PRESETS
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    PerturbConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.discriminators import FrozenFeaturesConfig
from imgtok.train.recipes.llamagen import IMAGENET
from imgtok.train.semantic import SemanticConfig

BATCH, EPOCHS = 1024, 200
LAST_LR = 5e-5  # of both cosines
LOSS = TokenizerLossConfig(
    l2=1.0,
    perceptual=1.0,
    perceptual_network="lpips-vgg",
    commitment=0.25,
    codebook=1.0,
    adversarial=0.5,
    lecam=0.001,
    lecam_form="released",
    discriminator=FrozenFeaturesConfig(),
    semantic=0.1,
    semantics=SemanticConfig(teacher="dinov2-b"),
)


def steps_of(epochs: int) -> int:
    return epochs * IMAGENET // BATCH


def optimizer(lr: float, warmup: int, weight_decay: float = 0.0, start: int = 0) -> OptimizerConfig:
    """A cosine to `LAST_LR` from epoch `start` on, `warmup` epochs long a rise."""
    return OptimizerConfig(
        lr=lr,
        betas=(0.9, 0.95),
        weight_decay=weight_decay,
        max_grad_norm=0.0,
        schedule="cosine",
        final_share=LAST_LR / lr,
        warmup_steps=steps_of(warmup),
        start=steps_of(start),
    )


def tokenizer(preset: str, loss: TokenizerLossConfig = LOSS, adversarial_epoch: int = 56) -> TokenizerTraining:
    """A plain one of RobusTok's ablation, which XQ-GAN is too."""
    return TokenizerTraining(
        tokenizer=PRESETS[preset].config,
        loop=LoopConfig(
            steps=steps_of(EPOCHS),
            batch_size=BATCH,
            ema_decay=0.9999,
            evaluate_every=steps_of(1),
            checkpoint_every=steps_of(1),
            workers=8,
        ),
        data=ImageDataConfig(source=".", crop_scale=(1.0, 1.25)),
        loss=replace(loss, adversarial_start=steps_of(adversarial_epoch)),
        optimizer=optimizer(3e-5 * BATCH / 128, warmup=1),
        discriminator_optimizer=optimizer(1e-4 * BATCH / 128, warmup=4, weight_decay=5e-4, start=adversarial_epoch),
    )


def robusttok() -> TokenizerTraining:
    """A tenth of the pictures from codes swapped among the nearest 100; from epoch 40 to 120 fewer, down to half."""
    perturb = PerturbConfig(share=0.1, rate=1.0, neighbours=100, hold=40 / EPOCHS, until=120 / EPOCHS, final=0.5)
    return replace(tokenizer("robusttok-f16"), perturb=perturb)


def robusttok_zero() -> TokenizerTraining:
    """The ablation's that falls to none. Whether the file of this name was trained so is not stated."""
    recipe = robusttok()
    return replace(recipe, perturb=replace(recipe.perturb, final=0.0))


def xqgan_4096() -> TokenizerTraining:
    return tokenizer("xqgan-f16-4096")


def xqgan_8192() -> TokenizerTraining:
    return tokenizer("xqgan-f16-8192")


def imagefolder() -> TokenizerTraining:
    """MSVR10P2-4096: two codes for each token, of which the second one is to tell what the picture shows."""
    return tokenizer("imagefolder-4096", replace(LOSS, semantics=replace(LOSS.semantics, branch="last")))


def xqgan_signs() -> TokenizerTraining:
    """MSBR10P2-4096: ImageFolder of signs, with an entropy loss over all scales at once; theirs is a mean over them."""
    semantics = replace(LOSS.semantics, branch="last", normalize=True)
    recipe = tokenizer("xqgan-f16-msb-4096", replace(LOSS, semantics=semantics, entropy=0.1), adversarial_epoch=64)
    return replace(recipe, optimizer=replace(recipe.optimizer, weight_decay=5e-5))


TOKENIZERS = {
    "robusttok": robusttok,
    "robusttok-zero": robusttok_zero,
    "xqgan-4096": xqgan_4096,
    "xqgan-8192": xqgan_8192,
    "imagefolder": imagefolder,
    "xqgan-msb-4096": xqgan_signs,
}
