"""Losses of tokenizer training: pure functions of pictures or logits to float32 scalars, unweighted."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def reconstruction_l1(images: Tensor, reference: Tensor) -> Tensor:  # b 3 h w twice -> scalar
    """Mean absolute difference of pictures in [-1, 1]. Raises ValueError for shapes that differ."""
    check_shapes(images, reference)
    return F.l1_loss(images.float(), reference.float())


def reconstruction_l2(images: Tensor, reference: Tensor) -> Tensor:  # b 3 h w twice -> scalar
    """Mean squared difference of pictures in [-1, 1]. Raises ValueError for shapes that differ."""
    check_shapes(images, reference)
    return F.mse_loss(images.float(), reference.float())


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Means of max(0, 1 - real) and max(0, 1 + fake) (arXiv:1705.02894), averaged as VQGAN does (arXiv:2012.09841)."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """The generator's side of the hinge loss: minus the mean logit of its pictures."""
    return -fake_logits.float().mean()


def non_saturating_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Binary cross-entropy with real pictures as 1 and generated ones as 0 (arXiv:1406.2661), averaged over the two."""
    return (F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()) / 2


def non_saturating_generator(fake_logits: Tensor) -> Tensor:
    """-log D of the generated pictures (arXiv:1406.2661): a strong gradient where the discriminator is sure of them."""
    return F.softplus(-fake_logits.float()).mean()


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, max_weight: float = 1e4
) -> Tensor:
    """Weight of the generator loss that gives it the gradient of the reconstruction loss (arXiv:2012.09841, eq. 7).

    Ratio of the two gradients' norms at `last_layer`, the weight of the decoder's last convolution; a detached scalar
    in [0, max_weight]. Both losses keep their graphs for the step. The paper adds 1e-6 to the denominator, its
    published code 1e-4: the code is followed. Raises RuntimeError (autograd's) if a loss does not reach `last_layer`.
    """
    reconstruction = gradient_norm(reconstruction_loss, last_layer)
    generator = gradient_norm(generator_loss, last_layer)
    return (reconstruction / (generator + 1e-4)).clamp(0, max_weight)


def lecam_regulariser(real_logits: Tensor, fake_logits: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """Mean squared distance of real logits to the average fake one and of fake logits to the average real one.

    LeCam regularisation (arXiv:2104.03310), added to the discriminator's loss. `ema_real` and `ema_fake` are scalars,
    the moving averages of the mean logits over past steps, kept by the caller; no gradient reaches them. This is the
    paper's formula; `lecam_released` is that of its published code.
    """
    real_term = (real_logits.float() - ema_fake.detach().float()).square().mean()
    fake_term = (fake_logits.float() - ema_real.detach().float()).square().mean()
    return real_term + fake_term


def lecam_released(real_logits: Tensor, fake_logits: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """As `lecam_regulariser`, but real - ema_fake and ema_real - fake count only where they are positive.

    So LeCam's published code has it, and those who took it over (RobusTok, arXiv:2509.12474): only logits that are on
    their own side of the other's average are drawn there.
    """
    real_term = F.relu(real_logits.float() - ema_fake.detach().float()).square().mean()
    fake_term = F.relu(ema_real.detach().float() - fake_logits.float()).square().mean()
    return real_term + fake_term


def lecam_of_means(real_logits: Tensor, fake_logits: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """As `lecam_released`, but of the mean logits of the batch in place of each logit: TiTok's (arXiv:2406.07550)."""
    return lecam_released(real_logits.float().mean(), fake_logits.float().mean(), ema_real, ema_fake)


def contrastive(codes: Tensor, features: Tensor, scale: float = 1.0, normalize: bool = False) -> Tensor:
    """Symmetric cross-entropy of telling which row of one belongs to which of the other (CLIP, arXiv:2103.00020).

    b d twice, row by row of the same pictures; with several processes, of the pictures of all. `scale` multiplies the
    products. `normalize`: of unit vectors, as CLIP has it; RobusTok's are as long as they are. At most log b if rows
    are alike. Raises ValueError for shapes that differ.
    """
    if codes.shape != features.shape:
        raise ValueError(f"codes {tuple(codes.shape)} and features {tuple(features.shape)} differ in shape")
    codes, features = codes.float(), features.float()
    if normalize:
        codes, features = F.normalize(codes, dim=-1), F.normalize(features, dim=-1)
    with torch.autocast(codes.device.type, enabled=False):  # which would multiply in half precision
        logits = scale * over_processes(codes) @ over_processes(features).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def over_processes(rows: Tensor) -> Tensor:
    """b d of each process -> all rows, those of the first process first.

    Gradients reach a process' own rows alone, as many times as there are processes: averaged over processes, as data
    parallelism does it, they are those of the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    count = dist.get_world_size()
    parts = [torch.empty_like(rows) for _ in range(count)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows + (count - 1) * (rows - rows.detach())
    return torch.cat(parts)


def gradient_norm(loss: Tensor, parameter: Tensor) -> Tensor:  # a scalar without a graph of its own
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    return gradient.float().norm()


def check_shapes(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape:
        raise ValueError(f"pictures {tuple(images.shape)} and reference {tuple(reference.shape)} differ in shape")
