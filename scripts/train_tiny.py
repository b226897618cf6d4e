"""Make `llmrun/data/tiny.gguf`, the embedded demo model, from nothing but this folder.

    python scripts/train_tiny.py                     write the texts, train, export, evaluate: half an hour on two cores
    python scripts/train_tiny.py --evaluate FILE     measure a GGUF file through llama.cpp

Training needs `torch`, `numpy` and `gguf`; the evaluation needs `llama-cpp-python`, `numpy` and `gguf`. Where both are
installed, one command does everything. The texts come from the grammars in `scripts/tiny/`; nothing is downloaded. The
working folder is `.tiny/` (the texts, the loss curve, a checkpoint, the results). docs/tiny.md tells what came out.
"""

import argparse
import hashlib
import importlib.util
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tiny import chat, data, evaluate, export, report, stories, tokenizer

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".tiny"
OUT = ROOT / "llmrun" / "data" / "tiny.gguf"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes."""

    seed: int = 20260
    steps: int = 900
    batch_tokens: int = 2560  # of one pass; a step adds up `passes` of them
    passes: int = 2
    learning_rate: float = 6e-3  # of the embedding and the norms (AdamW); the matrices (Muon) take two thirds
    warmup: int = 40
    n_vocab: int = 2048
    n_held: int = 200  # held-out documents of each kind
    threads: int = 2


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="only measure this GGUF file")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="a shorter run, to try things out")
    parser.add_argument("--out", type=Path, default=OUT, help="where the GGUF file goes")
    options = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    recipe = Recipe(steps=options.steps)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    words = make_tokenizer(recipe)
    held = held_out_documents(recipe, words)
    say(f"tokenizer: {len(words.pieces)} tokens; {len(held)} held-out documents")
    if options.evaluate is None:
        train(recipe, words, held, options.out, say)
    path = options.evaluate or options.out
    say(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    if importlib.util.find_spec("llama_cpp") is None:
        say("llama-cpp-python is not installed here: run `--evaluate` where it is")
        return
    result = evaluate.evaluate(path, words, held, say)
    evaluate.save(result, WORK / "evaluation.json")
    say(f"tokenizer differences: {result.tokenizer_differences}, unfinished answers: {result.unfinished}")
    if path.resolve() == OUT:
        report.write(ROOT / "docs" / "tiny.md", path, result, training_record(path))


def training_record(model: Path) -> Path:
    """Where a training run writes down its recipe and its loss curve."""
    return WORK / f"{model.stem}-training.json"


def make_tokenizer(recipe: Recipe) -> tokenizer.Tokenizer:
    """Train the tokenizer on a sample of stories, questions and answers, or read it from an earlier run."""
    path = WORK / f"tokenizer-{recipe.n_vocab}.json"
    rng = random.Random(f"{recipe.seed} tokenizer")
    texts = [stories.write(rng).text for _ in range(3000)]
    for _ in range(8000):
        texts += [text for turn in chat.converse(rng).turns for text in (turn.question, turn.answer)]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if path.exists() and (saved := json.loads(path.read_text()))["digest"] == digest:
        return tokenizer.Tokenizer(saved["pieces"])
    words = tokenizer.train(texts, recipe.n_vocab)
    path.write_text(json.dumps({"digest": digest, "pieces": words.pieces}) + "\n")
    return words


def held_out_documents(recipe: Recipe, words: tokenizer.Tokenizer) -> list[data.Document]:
    """`n_held` raw stories and `n_held` conversations that are not trained on."""
    rng = random.Random(f"{recipe.seed} held out")
    held = [data.story(stories.write(rng).text, words) for _ in range(recipe.n_held)]
    while len(held) < 2 * recipe.n_held:
        talk = data.conversation(chat.converse(rng), words)
        held += [talk] if len(talk.tokens) <= 1024 else []
    return held


def train(recipe: Recipe, words: tokenizer.Tokenizer, held: list[data.Document], out: Path, say: evaluate.Say) -> None:
    """Write the texts, train for `recipe.steps` steps, save a checkpoint and export it."""
    import torch
    from tiny.model import Shape, Tiny
    from torch.nn import functional

    torch.set_num_threads(recipe.threads)
    torch.set_flush_denormal(True)  # denormal numbers made the optimizer 30 times slower
    torch.manual_seed(recipe.seed)
    shape = Shape(n_vocab=recipe.n_vocab)
    model = Tiny(shape)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"model: {n_parameters:,} parameters, {shape}")

    rng = random.Random(f"{recipe.seed} training")
    secret = frozenset(words.decode(document.tokens) for document in held)
    need = recipe.steps * recipe.passes * recipe.batch_tokens
    documents: list[data.Document] = []
    while sum(len(document.tokens) for document in documents) < need:
        documents += data.write(rng, 5000, words, shape.n_ctx, secret)
    n_tokens = sum(len(document.tokens) for document in documents)
    sample = "\n\n".join(words.decode(document.tokens) for document in documents[:2000])
    (WORK / "corpus-sample.txt").write_text(sample + "\n")
    say(
        f"texts: {len(documents):,} documents, {n_tokens:,} tokens, {sum(d.is_chat for d in documents):,} conversations"
    )

    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name != "token_embd.weight"]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or name == "token_embd.weight"]
    optimizers = [
        torch.optim.Muon(matrices, lr=1.0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    full_rates = (recipe.learning_rate * 2 / 3, recipe.learning_rate)

    def loss_of(batch: list[data.Document]) -> tuple[torch.Tensor, int]:
        tokens, counted = (torch.from_numpy(array) for array in data.pad(batch))
        chosen = counted[:, 1:]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=True):
            logits = model.logits(model(tokens[:, :-1])[chosen])
        loss = functional.cross_entropy(logits.float(), tokens[:, 1:][chosen], reduction="sum")
        return loss, int(chosen.sum())

    def held_loss(is_chat: bool) -> float:
        with torch.no_grad():
            parts = [
                loss_of(b) for b in data.batches([d for d in held if d.is_chat == is_chat], 4096, random.Random(0))
            ]
        return sum(float(loss) for loss, _ in parts) / sum(n for _, n in parts)

    curve: list[dict[str, float]] = []
    stream = data.batches(documents, recipe.batch_tokens, rng)
    begun = time.monotonic()
    for step in range(recipe.steps + 1):
        if step % 100 == 0 or step == recipe.steps:
            row = {"step": step, "minutes": (time.monotonic() - begun) / 60}
            row |= {"stories": held_loss(is_chat=False), "chat": held_loss(is_chat=True)}
            curve.append(row)
            about = {"recipe": asdict(recipe), "shape": asdict(shape), "n_parameters": n_parameters, "curve": curve}
            about["cpu_minutes"] = time.process_time() / 60
            training_record(out).write_text(json.dumps(about, indent=1) + "\n")
            say(f"step {step}: held-out loss {row['stories']:.3f} on stories, {row['chat']:.3f} on chat")
        if step == recipe.steps:
            break
        parts = [loss_of(batch) for _, batch in zip(range(recipe.passes), stream, strict=False)]
        total = sum(n for _, n in parts)
        (sum(loss for loss, _ in parts) / total).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        warm = min(1.0, (step + 1) / recipe.warmup)
        rate = warm * max(0.02, 1 - step / recipe.steps)  # linear decay needs no second choice
        for optimizer, full in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * full
            optimizer.step()
            optimizer.zero_grad()
    torch.save(model.state_dict(), WORK / "checkpoint.pt")
    say(f"trained for {(time.monotonic() - begun) / 60:.1f} minutes")

    tensors = {name: parameter.detach().numpy().astype(np.float32) for name, parameter in model.named_parameters()}
    export.write_gguf(out, tensors, asdict(shape), words)


if __name__ == "__main__":
    main()
