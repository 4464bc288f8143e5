"""FlexTok: registers, their codes, and the flow that draws from any number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from imgtok.backbones.flow import Flow, Registers
from imgtok.backbones.vae import KLConfig
from imgtok.hub import build_from_state
from imgtok.nn.flow import FlowGuidance, FlowSolver
from imgtok.presets import flextok
from imgtok.tokenizer import Tokenizer

from .runner import Call, Case, Family


def build(case: Case) -> Tokenizer:
    """The cases begin and end with the autoencoder's latents, and leave it out: it is a small one here."""
    config = case.config
    assert config["adaln_expansion"] == 2  # of patches and registers, each with its own
    vae = KLConfig(widths=(32, 32, 32, 32), blocks=1, latent_channels=config["latent_channels"], norm_groups=8)
    weights = {f"vae.vae.{name}": tensor for name, tensor in vae.build().model.state_dict().items()}
    state = flextok.convert_tokenizer(case.state() | weights)
    return build_from_state(flextok.tokenizer_config(config, vae), state, case.name).eval()


def flow_of(tokenizer: Tokenizer) -> Flow:
    assert isinstance(tokenizer.backbone, Flow)
    return tokenizer.backbone


def encode_registers(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    (registers,) = case.outputs(call, known=1)
    case.compare(call, registers, tokenizer.to_codes(flow_of(tokenizer).encoder(latent)))


def quantize(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (registers,) = case.inputs(call)
    indices, quantized = case.outputs(call, known=2)
    assert call["arguments"]["quantized_range"] == [-1.0, 1.0]
    ours, bounded = tokenizer.quantizer(registers), tokenizer.quantizer.bound(registers)
    border = (0.5 - (bounded - bounded.round()).abs()).amin(-1)  # of the nearest rounding border
    assert not case.compare_choices(indices, ours.indices, border).any()
    case.compare(call, quantized, ours.latents)
    case.compare(call, quantized, tokenizer.quantizer.codes(ours.indices))


def registers_of(tokenizer: Tokenizer, indices: Tensor, keep: list[int]) -> Registers:
    latents = tokenizer.from_codes(tokenizer.quantizer.codes(indices.long()))
    return flow_of(tokenizer).decoder.registers(latents, torch.tensor(keep))


def velocity(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    latent, noise, *indices = case.inputs(call)
    crop, stats = case.outputs(call, known=2)
    arguments, decoder = call["arguments"], flow_of(tokenizer).decoder
    assert arguments["mix"] == "t*noise + (1-t)*latent"
    times = torch.tensor(arguments["timesteps"])
    if arguments["condition"] == "tokens":
        registers = registers_of(tokenizer, indices[0], arguments["keep"])
    else:
        registers = decoder.null_registers(len(noise))
    t = times[:, None, None, None]
    ours = decoder(t * noise + (1 - t) * latent, times, registers)
    case.compare(call, crop, ours)
    case.compare_stats(call, stats, ours)


def guidance_of(arguments: dict) -> FlowGuidance:
    scale, kind = arguments["guidance_scale"], arguments["guidance"]
    if kind == "apg":
        return FlowGuidance(
            scale=scale,
            momentum=arguments["apg_momentum"],
            max_norm=arguments["apg_norm_threshold"],
            parallel=arguments["apg_eta"],
        )
    assert (kind, scale) == ("none", 1.0) or kind == "cfg"
    return FlowGuidance(scale=scale)


def euler(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    noise, indices = case.inputs(call)
    crop, stats = case.outputs(call, known=2)
    arguments, flow = call["arguments"], flow_of(tokenizer)
    assert (arguments["t_start"], arguments["t_end"]) == (1.0, 0.0)
    flow.solver, flow.guidance = FlowSolver(num_steps=arguments["num_steps"]), guidance_of(arguments)
    ours = flow.draw(registers_of(tokenizer, indices, arguments["keep"]), noise)
    case.compare(call, crop, ours)
    case.compare_stats(call, stats, ours)


def time_embedding(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (times,) = case.inputs(call)
    (features,) = case.outputs(call, known=1)
    case.compare(call, features, flow_of(tokenizer).decoder.time(times))


FAMILY = Family(
    build=build,
    calls={
        "encode_registers": encode_registers,
        "quantize": quantize,
        "velocity": velocity,
        "euler": euler,
        "time_embedding": time_embedding,
    },
)
