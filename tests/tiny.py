"""Parts small enough for tests that are about something else."""

from imgtok.backbones.cnn import CNNConfig

# 16 x 16 pixels to 4 x 4 tokens.
CNN = CNNConfig(
    encoder_widths=(8,),
    decoder_widths=(8,),
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    encoder_patch=4,
    decoder_patch=4,
    latent_channels=8,
    bottleneck=False,
    norm_groups=4,
)
