"""Records outputs of a tiny Janus in Python's transformers, and checks that transformers loads what unirl saves.

    janus.py make DIR [--seed N]   write a random checkpoint DIR/model and its outputs, DIR/reference.safetensors and .json
    janus.py check SAVED MADE      check that SAVED loads and equals the checkpoint written by `make MADE`

Everything is float32 on the CPU. The exit status is 0, or 1 with an error on stderr.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import JanusForConditionalGeneration as Janus

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPECIAL = [BOS, EOS, PAD, BOI, EOI, IMAGE, USER, ASSISTANT]

SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
PROMPTS = ["a red circle", "two small blue squares to the left of a green triangle"]
DIALOGUES = [("What color is the circle?", "red"), ("How many squares are there?", "There are 2, and they're blue.")]

GUIDANCE = 5.0
SIDE, PATCH = 8, 2  # pixels
CODES = (SIDE // PATCH) ** 2  # of an image, and image rows of a question
MARGIN = 1e-3  # minimum between the two most likely codes; rounding changes guided logits by 1e-5
TOLERANCE = 1e-5  # of logits, between two runs of the same program


# --- prompts ---


def generation_prompt(prompt):
    return f"{BOS}{USER}: {prompt}\n\n{ASSISTANT}:{BOI}"


def question_prompt(system, question):
    system = f"{system}\n\n" if system else ""
    return f"{BOS}{system}{USER}: {BOI}{IMAGE * CODES}{EOI}\n{question}\n\n{ASSISTANT}:"


def answer_text(answer):
    return f" {answer}{EOS}"


# --- the checkpoint ---


def make_tokenizer():
    """Byte-level BPE like that of Janus: splits words, digits and punctuation; special tokens last; no BOS added."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(tokenizers.Regex(at), "isolated") for at in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+")]
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([SYSTEM, *PROMPTS, *map(" ".join, DIALOGUES)], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def make_model(tokenizer, seed):
    ids = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    width = 64
    text = dict(
        vocab_size=tokenizer.get_vocab_size() + 10,  # published models have spare rows too
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        **ids,
    )
    vision = dict(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        mlp_ratio=2,
        projection_dim=width,
        num_image_tokens=CODES,
    )
    vq = dict(
        num_embeddings=64,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 2],
        projection_dim=width,
        image_token_embed_dim=width,
    )
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.JanusVisionConfig(**vision),
        vq_config=transformers.JanusVQVAEConfig(**vq),
        image_token_id=tokenizer.token_to_id(IMAGE),
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = Janus(config).eval()
    model.generation_config = transformers.GenerationConfig(
        guidance_scale=GUIDANCE, temperature=1.0, generation_kwargs={"boi_token_id": tokenizer.token_to_id(BOI)}, **ids
    )
    # Default weights are so small that codes nearly tie, and zero in the padding row.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
            weight.normal_(0, scale, generator=generator)
            if weight.dim() == 1 and name.endswith("weight"):  # a norm
                weight += 1
    return model


def small_files():
    """The files other than weights, as written by transformers' converter."""
    named = {"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE}
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    return {
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": named,
            "model_max_length": 16384,
            "processor_class": "JanusProcessor",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": None,
            "use_default_system_prompt": True,
            **tokens,
            **named,
        },
        "special_tokens_map.json": {"additional_special_tokens": [IMAGE, USER, ASSISTANT], **tokens, **named},
        "processor_config.json": {
            "num_image_tokens": CODES,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": True,
        },
        "preprocessor_config.json": {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "JanusImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 2,
            "processor_class": "JanusProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": SIDE, "width": SIDE},
        },
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- outputs ---


def generate_codes(model, prompts, pad):
    """Greedy codes [B,N] after left-padded prompts."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return model.generate(ids, attention_mask=attention_mask, generation_mode="image", do_sample=False)


def code_logits(model, prompt, codes):
    """Logits [N,K] of `codes [N]` after a prompt."""
    before = model.get_input_embeddings()(torch.tensor([prompt]))
    generated = model.prepare_embeddings_for_image_generation(codes[None, :-1])
    hidden = model.model.language_model(inputs_embeds=torch.cat([before, generated], 1)).last_hidden_state
    return model.model.generation_head(hidden[0, len(prompt) - 1 :])


def answer_logp(model, question, answer, image):
    """Log-probabilities of the tokens of an answer, `image [1,3,S,S]` being in 0..1."""
    ids = torch.tensor([question + answer])
    logits = model(ids, pixel_values=(image - 0.5) / 0.5, attention_mask=torch.ones_like(ids)).logits
    logp = logits[0, len(question) - 1 : -1].log_softmax(-1)
    return logp.gather(1, torch.tensor(answer)[:, None])[:, 0]


def make(folder, seed):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    model.save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    for name, value in small_files().items():
        write_json(folder / "model" / name, value)

    pad = tokenizer.token_to_id(PAD)
    prompts = [encode(generation_prompt(prompt)) for prompt in PROMPTS]
    unconditional = [[bos, *[pad] * len(between), boi] for bos, *between, boi in prompts]
    codes = generate_codes(model, prompts, pad)
    logits, empty_logits = (
        torch.stack([code_logits(model, *row) for row in zip(rows, codes, strict=True)])
        for rows in (prompts, unconditional)
    )
    guided = empty_logits + GUIDANCE * (logits - empty_logits)
    if not guided.argmax(-1).equal(codes):
        sys.exit("error: the generated codes are not the most likely ones under teacher-forced logits")
    best = guided.topk(2).values
    margin = (best[..., 0] - best[..., 1]).min().item()
    if margin < MARGIN:
        sys.exit(f"error: seed {seed}: two codes nearly tie, by {margin}; use another `--seed`")

    images = torch.rand(len(DIALOGUES), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    questions = []
    for system in (SYSTEM, ""):
        for at, (question, answer) in enumerate(DIALOGUES):
            ids, answer_ids = encode(question_prompt(system, question)), encode(answer_text(answer))
            logp = answer_logp(model, ids, answer_ids, images[at : at + 1]).tolist()
            record = {"system": system, "image": at, "question": question, "ids": ids}
            questions.append(record | {"answer": answer, "answer_ids": answer_ids, "answer_logp": logp})

    tensors = {
        "codes": codes,
        "logits": logits,
        "empty_logits": empty_logits,
        "decoded": model.model.vqmodel.decode(codes),
        "images": images,
    }
    save_file(tensors, folder / "reference.safetensors")
    reference = {
        "transformers": transformers.__version__,
        "guidance": GUIDANCE,
        "margin": margin,
        "special": {token: tokenizer.token_to_id(token) for token in SPECIAL},
        "prompts": [{"prompt": prompt, "ids": ids} for prompt, ids in zip(PROMPTS, prompts, strict=True)],
        "questions": questions,
    }
    write_json(folder / "reference.json", reference)


# --- the saved checkpoint ---


def check(saved, made):
    if not (saved / "config.json").is_file():
        sys.exit(f"error: no `config.json` in `{saved}`")
    try:
        model, info = Janus.from_pretrained(
            saved, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        kinds = (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast)
        loaded = [kind.from_pretrained(saved) for kind in kinds]
    except Exception as error:
        sys.exit(f"error: transformers cannot load `{saved}`: {' '.join(str(error).split())}")
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"error: `{saved}`: {kind.replace('_', ' ')}: {', '.join(map(str, sorted(info[kind])))}")

    weights = model.state_dict()
    for name, expected in load_file(made / "model" / "model.safetensors").items():
        if not weights[name].equal(expected):
            sys.exit(f"error: `{saved}`: `{name}` differs from `{made}`")

    reference = json.loads((made / "reference.json").read_text(encoding="utf-8"))
    tensors = load_file(made / "reference.safetensors")
    for prompt, codes, expected in zip(reference["prompts"], tensors["codes"], tensors["logits"], strict=True):
        off = (code_logits(model.eval(), prompt["ids"], codes) - expected).abs().max().item()
        if not off <= TOLERANCE:
            sys.exit(f"error: `{saved}`: logits of `{prompt['prompt']}` differ by {off}, expected at most {TOLERANCE}")

    texts = [(generation_prompt(row["prompt"]), row["ids"]) for row in reference["prompts"]]
    for row in reference["questions"]:
        texts.append((question_prompt(row["system"], row["question"]), row["ids"]))
        texts.append((answer_text(row["answer"]), row["answer_ids"]))
    for tokenizer in loaded:
        for text, expected in texts:
            got = tokenizer.encode(text, add_special_tokens=False)
            if got != expected:
                sys.exit(f"error: `{saved}`: ids of {text!r}: expected {expected}, got {got}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("folder", metavar="DIR", type=Path)
    maker.add_argument("--seed", type=int, default=0)
    checker = commands.add_parser("check")
    checker.add_argument("saved", metavar="SAVED", type=Path)
    checker.add_argument("made", metavar="MADE", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if given.command == "make":
        make(given.folder, given.seed)
    else:
        check(given.saved, given.made)


if __name__ == "__main__":
    main()
