"""Janus-Pro-1B in Python: `generate` of transformers, and the fastest implementation with its modules.

    janus.py [--tiny] [--json FILE]

Random weights at the published sizes, bf16 on a GPU.
"""

import torch
from common import CUDA, DEVICE, KIND, about, arguments, bench
from transformers import DynamicCache, JanusConfig, JanusForConditionalGeneration, StaticCache

IMAGES, PROMPT, GUIDANCE = 8, 32, 5
VOCABULARY = 102400

args = arguments(__doc__)
torch.manual_seed(0)
if args.tiny:
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 64,
        "image_size": 128,
        "num_image_tokens": 64,
    }
    vq = {
        "projection_dim": 64,
        "image_token_embed_dim": 64,
        "base_channels": 32,
        "num_res_blocks": 1,
        "channel_multiplier": [1, 1, 1, 1, 1],
        "latent_channels": 32,
    }
else:
    text = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "max_position_embeddings": 16384,
    }
    vision = {"projection_dim": 2048}
    vq = {"projection_dim": 2048, "image_token_embed_dim": 2048}
text |= {"model_type": "llama", "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6}
text |= {"bos_token_id": 100000, "eos_token_id": 100001, "pad_token_id": 100002}
config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq)
config._attn_implementation = "sdpa"
with torch.device(DEVICE):
    model = JanusForConditionalGeneration(config)
model = model.to(DEVICE, KIND).eval()

language, embed, head = model.model.language_model, model.get_input_embeddings(), model.model.generation_head
tokens, codes = model.model.vision_model.config.num_image_tokens, model.model.vqmodel.config.num_embeddings
edge = model.model.vision_model.config.image_size
about(
    args.json,
    f"{'a tiny Janus' if args.tiny else 'Janus-Pro-1B'}, {IMAGES} images, guidance {GUIDANCE}, "
    f"{tokens} tokens after {PROMPT}",
)

ids = torch.randint(10, 100000, (1, PROMPT), device=DEVICE)
settings = model.generation_config
settings.generation_kwargs = {"boi_token_id": 100003}
settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = 100000, 100001, 100002


# --- generation ---


@torch.no_grad()
def generate():
    # transformers 5.17 cannot build a static cache here (`prefill_chunk_size` is missing), so pass one.
    cache = StaticCache(config=config.text_config, max_cache_len=PROMPT + tokens)
    return model.generate(
        ids,
        past_key_values=cache,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=True,
        guidance_scale=GUIDANCE,
        num_return_sequences=IMAGES,
        max_length=PROMPT + tokens,
    )


def sample(hidden):
    logits = head(hidden).float()
    cond, uncond = logits[:IMAGES], logits[IMAGES:]
    return torch.multinomial(torch.softmax(uncond + GUIDANCE * (cond - uncond), -1), 1)


def rows_of(sampled):
    twice = torch.cat([sampled, sampled])
    return model.prepare_embeddings_for_image_generation(twice).reshape(2 * IMAGES, 1, -1)


@torch.no_grad()
def dynamic():
    x, cache, generated = embed(ids.expand(2 * IMAGES, -1)), DynamicCache(), []
    for _ in range(tokens):
        out = language(inputs_embeds=x, past_key_values=cache, use_cache=True)
        generated.append(sample(out.last_hidden_state[:, -1]))
        x = rows_of(generated[-1])
    return torch.cat(generated, 1)


class Graph:
    """A static cache, and each step as one CUDA graph."""

    def __init__(self):
        length = PROMPT + tokens
        self.cache = StaticCache(config=config.text_config, max_cache_len=length)
        self.x = torch.zeros(2 * IMAGES, 1, config.text_config.hidden_size, device=DEVICE, dtype=KIND)
        self.column = torch.zeros(1, dtype=torch.long, device=DEVICE)
        self.mask = torch.zeros(2 * IMAGES, 1, 1, length, dtype=torch.bool, device=DEVICE)
        self.columns = torch.arange(length, device=DEVICE)
        self.graph = None

    def step(self):
        out = language(
            inputs_embeds=self.x,
            past_key_values=self.cache,
            use_cache=True,
            cache_position=self.column,
            position_ids=self.column[None].expand(2 * IMAGES, 1),
            attention_mask=self.mask,
        )
        self.sampled = sample(out.last_hidden_state[:, -1])
        self.x.copy_(rows_of(self.sampled))

    def capture(self):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    @torch.no_grad()
    def run(self):
        self.cache.reset()
        causal = torch.ones(PROMPT, PROMPT + tokens, dtype=torch.bool, device=DEVICE).tril()
        out = language(
            inputs_embeds=embed(ids.expand(2 * IMAGES, -1)),
            past_key_values=self.cache,
            use_cache=True,
            cache_position=torch.arange(PROMPT, device=DEVICE),
            attention_mask=causal[None, None].expand(2 * IMAGES, 1, -1, -1),
        )
        generated = [sample(out.last_hidden_state[:, -1])]
        self.x.copy_(rows_of(generated[0]))
        for at in range(PROMPT, PROMPT + tokens - 1):
            self.column.fill_(at)
            self.mask.copy_((self.columns <= at)[None, None, None].expand_as(self.mask))
            if self.graph is None and at == PROMPT + 3:
                self.capture()
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()
            generated.append(self.sampled.clone())
        return torch.cat(generated, 1)


bench(args.json, "transformers generate", generate, 1, steps=tokens)
if CUDA:
    bench(args.json, "static cache, CUDA graph", Graph().run, 2, 2, steps=tokens)
else:
    bench(args.json, "dynamic cache", dynamic, 1, steps=tokens)


# --- scoring, understanding, decoding ---

generated = torch.randint(0, codes, (IMAGES, tokens), device=DEVICE)


def score():
    images = model.prepare_embeddings_for_image_generation(generated).reshape(IMAGES, tokens, -1)
    x = torch.cat([embed(ids.expand(IMAGES, -1)), images[:, :-1]], 1)
    hidden = language(inputs_embeds=x, use_cache=False).last_hidden_state[:, -tokens:]
    return torch.log_softmax(head(hidden).float(), -1).gather(-1, generated[..., None]).mean()


def score_with_gradient():
    (-score()).backward()
    model.zero_grad(set_to_none=True)


layers = sum(x.numel() for x in language.parameters()) - VOCABULARY * config.text_config.hidden_size
flop = 2 * layers * IMAGES * (PROMPT + tokens - 1)
bench(args.json, "log-probability and gradient", score_with_gradient, flop=3 * flop)
with torch.no_grad():
    bench(args.json, "log-probability forward", score, flop=flop)
    pixels = torch.randn(IMAGES, 3, edge, edge, device=DEVICE, dtype=KIND)
    bench(args.json, "siglip", lambda: model.model.get_image_features(pixels))
    bench(args.json, "vq decode", lambda: model.decode_image_tokens(generated))
