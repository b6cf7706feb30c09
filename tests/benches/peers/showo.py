"""A UniRL step on Show-o 512 in Python, with transformers' Phi.

    showo.py [--tiny] [--json FILE]

MaskGIT generation with guidance, answers, and the update: images are re-masked and completed by the straight-through
Gumbel-softmax, the log-likelihood of the answers is differentiated through the image tokens, with a KL term to a frozen
reference, then AdamW. Random weights at the published sizes, bf16 on a GPU.
"""

import copy
import math

import torch
import torch.nn.functional as F
from common import CUDA, DEVICE, KIND, about, arguments, report, reset_peak, seconds
from transformers import PhiConfig, PhiForCausalLM

PROMPTS, GROUP, STEPS, GUIDANCE = 2, 3, 16, 2
TEXT, QUESTION, ANSWER = 128, 32, 16
VOCABULARY, CODE, CODES = 58498, 50305, 8192  # all tokens, the first image code, the number of image codes
SOI, EOI, MMU, MASK = 50296, 50297, 50303, VOCABULARY - 1
IMAGES = PROMPTS * GROUP
TIMES = 3

args = arguments(__doc__)
torch.manual_seed(0)
N = 64 if args.tiny else 1024
if args.tiny:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
else:
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
config = PhiConfig(vocab_size=VOCABULARY, partial_rotary_factor=0.5, max_position_embeddings=2048, **sizes)
config._attn_implementation = "sdpa"
with torch.device(DEVICE):
    model = PhiForCausalLM(config)
model = model.to(DEVICE, KIND)
reference = copy.deepcopy(model).eval().requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=CUDA)
embed = model.get_input_embeddings()
about(
    args.json,
    f"{'a tiny Show-o' if args.tiny else 'Show-o 512'}, {IMAGES} images, guidance {GUIDANCE}, {STEPS} steps, "
    f"{N} tokens after {TEXT}",
)


def visible(length, first, end):
    """Causal, except that image rows attend to each other."""
    mask = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
    mask[first:end, first:end] = True
    return mask[None, None]


T2I_LENGTH = TEXT + 1 + N + 1
T2I_MASK = visible(T2I_LENGTH, TEXT, T2I_LENGTH)
MMU_MASK = visible(3 + N + QUESTION + ANSWER, 0, 3 + N)

text = torch.randint(0, 50000, (PROMPTS, TEXT), device=DEVICE).repeat_interleave(GROUP, 0)
null = torch.randint(0, 50000, (1, TEXT), device=DEVICE).expand(IMAGES, -1)
question = torch.randint(0, 50000, (IMAGES, QUESTION), device=DEVICE)
mmu, soi, eoi = (torch.full((IMAGES, 1), token, device=DEVICE) for token in (MMU, SOI, EOI))


def hidden(model, x, mask):
    added = torch.zeros(mask.shape, dtype=KIND, device=DEVICE).masked_fill(~mask, torch.finfo(KIND).min)
    added = added.expand(x.shape[0], 1, -1, -1)
    return model.model(inputs_embeds=x, attention_mask=added, use_cache=False).last_hidden_state


def code_logits(h):
    head = model.lm_head
    h = h[:, TEXT + 1 : TEXT + 1 + N]
    return F.linear(h, head.weight[CODE : CODE + CODES], head.bias[CODE : CODE + CODES]).float()


@torch.no_grad()
def generate():
    ids = torch.full((IMAGES, N), MASK, device=DEVICE)
    for step in range(STEPS):
        both = torch.cat([torch.cat([text, soi, ids, eoi], 1), torch.cat([null, soi, ids, eoi], 1)])
        cond, uncond = code_logits(hidden(model, embed(both), T2I_MASK)).chunk(2)
        probabilities = torch.softmax((1 + GUIDANCE) * cond - GUIDANCE * uncond, -1)
        generated = torch.multinomial(probabilities.view(-1, CODES), 1).view(IMAGES, N)
        unknown = ids == MASK
        generated = torch.where(unknown, generated, ids - CODE)
        ratio = (step + 1) / STEPS
        masked_count = max(1, int(N * math.cos(ratio * math.pi / 2)))
        picked = probabilities.gather(-1, generated[..., None])[..., 0].masked_fill(~unknown, 1e9)
        noise = -torch.log(-torch.log(torch.rand_like(picked).clamp_min(1e-20)).clamp_min(1e-20))
        confidence = picked.clamp_min(1e-20).log() + (1 - ratio) * noise
        cutoff = confidence.sort(-1).values[:, masked_count : masked_count + 1]
        ids = torch.where(confidence < cutoff, MASK, generated + CODE)
    return generated


def understanding_input(image, answers):
    parts = [embed(torch.cat([mmu, soi], 1)), image, embed(eoi), embed(question), embed(answers)]
    return torch.cat(parts, 1)


@torch.no_grad()
def answer(generated):
    answers = torch.zeros(IMAGES, 0, dtype=torch.long, device=DEVICE)
    for _ in range(ANSWER):  # like the released sampler, recompute the full sequence for every token
        x = understanding_input(embed(generated + CODE), answers)
        length = x.shape[1]
        logits = model.lm_head(hidden(model, x, MMU_MASK[..., :length, :length])[:, -1]).float()
        answers = torch.cat([answers, torch.multinomial(torch.softmax(logits, -1), 1)], 1)
    return answers


def answer_logp(model, image, answers):
    h = hidden(model, understanding_input(image, answers), MMU_MASK)[:, -ANSWER - 1 : -1]
    return torch.log_softmax(model.lm_head(h).float(), -1).gather(-1, answers[..., None])[..., 0]


def update(generated, answers):
    ratio = torch.rand(IMAGES, 1, device=DEVICE)
    masked = torch.rand(IMAGES, N, device=DEVICE) < torch.cos(ratio * math.pi / 2)
    ids = torch.cat([text, soi, torch.where(masked, MASK, generated + CODE), eoi], 1)
    hard = F.gumbel_softmax(code_logits(hidden(model, embed(ids), T2I_MASK)), tau=1.0, hard=True)
    soft = hard.to(KIND) @ embed.weight[CODE : CODE + CODES]
    image = torch.where(masked[..., None], soft, embed(generated + CODE))
    logp = answer_logp(model, image, answers)
    with torch.no_grad():
        reference_logp = answer_logp(reference, image.detach(), answers)
    rewards = torch.rand(PROMPTS, GROUP, device=DEVICE)
    weights = torch.softmax((rewards - rewards.mean(1, keepdim=True)) / 0.5, 1).view(IMAGES, 1)
    ratio = reference_logp - logp
    loss = -(weights * logp).sum(0).mean() + 0.01 * (ratio.exp() - ratio - 1).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


rows = {"generation": [], "answers": [], "update": [], "step": []}
for at in range(1 + TIMES):
    reset_peak()
    times = {}
    times["generation"], generated = seconds(generate)
    times["answers"], answers = seconds(answer, generated)
    times["update"], _ = seconds(update, generated, answers)
    times["step"] = sum(times.values())
    if at > 0:  # the first is the warm-up
        for row, taken in times.items():
            rows[row].append(taken)
values = sum(x.numel() for x in model.parameters())
for row, times in rows.items():
    report(args.json, row, times, flop=2 * values * T2I_LENGTH * 2 * IMAGES * STEPS if row == "generation" else 0)
