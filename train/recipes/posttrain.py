"""Post-training of decoders: RobusTok's (arXiv:2509.12474), and a small one for the pairs of the quickstart."""

from __future__ import annotations

from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.train.config import LoopConfig, OptimizerConfig, PictureLossConfig
from imgtok.train.discriminators import FrozenFeaturesConfig
from imgtok.train.posttrain import PictureDataConfig, PostTraining


def robusttok() -> PostTraining:
    """200,000 pictures, 40 epochs (the paper's best) of batch 1024; drawn as from its smaller generator, RAR-B.

    The discriminator's heads begin anew, as in the published configuration (the paper takes the trained ones). Ours
    differ in that running means of the weights begin here, where the published ones go on from the tokenizer's.
    """
    epoch = 200_000 // 1024
    optimizer = OptimizerConfig(
        lr=5e-5, betas=(0.9, 0.95), max_grad_norm=0.0, schedule="cosine", final_share=0.2, warmup_steps=epoch
    )
    return PostTraining(
        loop=LoopConfig(
            steps=40 * 200_000 // 1024,
            batch_size=1024,
            ema_decay=0.9999,
            evaluate_every=epoch,
            checkpoint_every=epoch,
            workers=4,
        ),
        preservation=0.7,
        guidance=Guidance(scale=6.0, schedule="cosine", power=1.15),
        law=Law(temperature=1.02),
        data=PictureDataConfig(source=".", pictures=200_000),
        loss=PictureLossConfig(
            l2=1.0,
            perceptual=1.0,
            perceptual_network="lpips-vgg",
            adversarial=0.5,
            adversarial_loss="hinge",
            lecam=0.001,
            lecam_form="released",
            discriminator=FrozenFeaturesConfig(),
        ),
        optimizer=optimizer,
        discriminator_optimizer=OptimizerConfig(
            lr=5e-5,
            betas=(0.9, 0.95),
            weight_decay=5e-4,
            max_grad_norm=0.0,
            schedule="cosine",
            final_share=0.2,
            warmup_steps=2 * epoch,
        ),
    )


def quickstart() -> PostTraining:
    return PostTraining(
        loop=LoopConfig(steps=400, batch_size=16, ema_decay=0.99, evaluate_every=50, checkpoint_every=50),
        preservation=0.7,
        clean_share=0.25,
        guidance=Guidance(scale=3.0),
        patience=3,
        data=PictureDataConfig(source="emoji64", val_pictures=200),
        loss=PictureLossConfig(l1=1.0, l2=1.0),
        optimizer=OptimizerConfig(lr=2e-4, betas=(0.9, 0.95), schedule="cosine", warmup_steps=20),
    )


POST_TRAININGS = {"robusttok-posttrain": robusttok, "quickstart-posttrain": quickstart}
