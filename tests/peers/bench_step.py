"""The step that `fpo bench step` measures, by PyTorch: one line of JSON with the same fields.

Pairs are all alike, of --tokens and --prompt-tokens, or as --lengths FILE says, one {"prompt": …, "chosen": …, "rejected": …} a line:
taken in the file's order, --pairs at a time, and padded on the right to the longest row of their batch. Only real tokens count.

    python bench_step.py --peer torch   FPO on transformers' model, written by hand, nothing computed that isn't needed
    python bench_step.py --peer trl     TRL's DPOTrainer with `sigmoid_norm`, FPO without its constraint: TRL has no FPO
"""

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch
import torch.nn.functional as F
import transformers


MODELS = {
    "gemma-2-2b": dict(vocab=256000, d_model=2304, layers=26, heads=8, kv_heads=4, head_dim=256, ffn=9216, d_sae=16384),
    "smollm2-135m": dict(vocab=49152, d_model=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, d_sae=16384),
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=["torch", "trl"], required=True)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--lengths", metavar="FILE")
    sizes = dict(pairs=8, vocab=4096, d_model=256, layers=4, heads=4, kv_heads=2, head_dim=64,
                 ffn=1024, d_sae=2048, k=50, steps=7, threads=2)
    for name, value in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--precision", choices=["float32", "bf16-mixed"], default="float32")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    vars(a).update(MODELS.get(a.model, {}))
    if on_gpu(a) and not torch.cuda.is_available():
        raise SystemExit(f"PyTorch {torch.__version__} finds no CUDA device: is it built for CUDA, and the driver there?")
    if a.lengths and (a.tokens or a.prompt_tokens):
        parser.error("--lengths can't be used with --tokens or --prompt-tokens")
    a.tokens = a.tokens or 128
    a.prompt_tokens = a.prompt_tokens or a.tokens // 4
    return a


def batches_of_lengths(a):
    """Tokens of prompt, chosen and rejected response of the pairs of each batch that has a turn; step n is on batch n in turn."""
    if not a.lengths:
        return [[(a.prompt_tokens, a.tokens - a.prompt_tokens, a.tokens - a.prompt_tokens)] * a.pairs]
    with open(a.lengths, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    pairs = [(line["prompt"], line["chosen"], line["rejected"]) for line in lines]
    if len(pairs) < a.pairs:
        raise SystemExit(f"{a.lengths}: it has {len(pairs)} pairs for --pairs {a.pairs}")
    batches = [pairs[i:i + a.pairs] for i in range(0, len(pairs) - a.pairs + 1, a.pairs)]
    return batches[:a.steps + 1]


def random_model(a):
    """Of Gemma-2's architecture with the attention that its soft-cap needs, or of Llama's with transformers' fastest."""
    sizes = dict(
        vocab_size=a.vocab, hidden_size=a.d_model, intermediate_size=a.ffn, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim, use_cache=False,
    )
    torch.manual_seed(0)
    if a.model == "smollm2-135m":
        config = transformers.LlamaConfig(**sizes, rope_theta=1e5, tie_word_embeddings=True, attn_implementation="sdpa")
        return transformers.LlamaForCausalLM(config).float().to(a.device)
    config = transformers.Gemma2Config(**sizes, query_pre_attn_scalar=a.head_dim, attn_implementation="eager")
    return transformers.Gemma2ForCausalLM(config).float().to(a.device)


def mixed(a):
    """float32 parameters, bfloat16 products: PyTorch's counterpart of bf16-mixed."""
    return torch.autocast(torch.device(a.device).type, torch.bfloat16, enabled=a.precision == "bf16-mixed")


def random_batches(a):
    draw = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(3, a.vocab, (n,), generator=draw).tolist()
    pair = lambda prompt, chosen, rejected: {"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": ids(rejected)}
    return [[pair(*lengths) for lengths in batch] for batch in batches_of_lengths(a)]


class Batch:
    """Rows of chosen responses, then of rejected ones, and where in them responses are predicted: a slice where all are alike.
    Padding is on the right, where causal attention needs no mask for it; without one PyTorch's attention is faster."""

    def __init__(self, pairs, device):
        rows = [(p["prompt_ids"], p[side]) for side in ("chosen_ids", "rejected_ids") for p in pairs]
        counts = [len(response) for _, response in rows]
        starts = [len(prompt) - 1 for prompt, _ in rows]
        lengths = [len(prompt) + len(response) for prompt, response in rows]
        width = max(lengths)
        self.tokens = torch.tensor([p + r + [0] * (width - len(p + r)) for p, r in rows], device=device)
        self.targets = torch.tensor([token for _, response in rows for token in response], device=device)
        self.counts, self.counts_on_device = counts, torch.tensor(counts, device=device)
        self.first = self.tokens[:1, :lengths[0]]
        self.places = None
        if len(set(zip(starts, counts))) == 1:
            self.start = starts[0]
        else:
            places = [width * row + start + i for row, (start, count) in enumerate(zip(starts, counts)) for i in range(count)]
            self.places = torch.tensor(places, device=device)

    def predicting(self, x):
        """Of `[rows, width, …]` what predicts the response tokens, `[response tokens, …]`."""
        if self.places is None:
            return x[:, self.start:-1].flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self.places)

    def sums(self, x):
        """The sum over each row's response tokens."""
        if self.places is None:
            return x.unflatten(0, (len(self.counts), -1)).sum(1)
        return torch.stack([row.sum(0) for row in x.split(self.counts)])


def on_gpu(a):
    return a.device.startswith("cuda")


def synchronize(a):
    if on_gpu(a):
        torch.cuda.synchronize(a.device)


def device_memory(a):
    """Of all that the process did: the most that tensors held, and the most that was taken from the driver."""
    if not on_gpu(a):
        return {}
    return {
        "device_in_use_mib": torch.cuda.max_memory_allocated(a.device) / 2**20,
        "device_reserved_mib": torch.cuda.max_memory_reserved(a.device) / 2**20,
    }


def fpo_steps(a):
    """Yields after each step. Log-probabilities and features of the reference are there before, as in FPO."""
    model = random_model(a)
    if a.checkpoint_activations:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batches = [Batch(pairs, a.device) for pairs in random_batches(a)]
    site = {}
    model.model.layers[-1].register_forward_hook(
        lambda module, inputs, output: site.update(x=output[0] if isinstance(output, tuple) else output))
    cap = getattr(model.config, "final_logit_softcapping", None)

    with torch.no_grad():
        model.model(batches[0].first)
        spread = site["x"].square().mean().sqrt()
    w_enc = torch.randn(a.d_model, a.d_sae, device=a.device) / a.d_model**0.5
    threshold = torch.full((a.d_sae,), 2 * spread.item(), device=a.device)

    def quantities(batch):
        hidden = batch.predicting(model.model(batch.tokens).last_hidden_state)
        logits = model.lm_head(hidden).float()
        if cap:
            logits = cap * torch.tanh(logits / cap)
        log_probs = batch.sums(torch.log_softmax(logits, -1).gather(1, batch.targets[:, None])[:, 0])
        z = (batch.predicting(site["x"]) @ w_enc).float()
        return log_probs, batch.sums(torch.where(z > threshold, z, 0.0)) / batch.counts_on_device[:, None]

    with torch.no_grad(), mixed(a):
        references = [quantities(batch) for batch in batches]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-7, weight_decay=0.0)
    beta, alpha = 0.1, 0.5
    for batch, (reference_log_probs, reference_features) in itertools.cycle(zip(batches, references)):
        with mixed(a):
            log_probs, features = quantities(batch)
        with torch.no_grad():
            chosen = torch.zeros_like(features, dtype=torch.bool)
            for x in (features, reference_features):
                chosen.scatter_(1, x.topk(a.k, 1).indices, True)
        distance = ((features - reference_features).square() * chosen).sum(1) / a.k
        rewards = beta * (log_probs - reference_log_probs) / batch.counts_on_device
        distance_w, distance_l = distance.chunk(2)
        reward_w, reward_l = rewards.chunk(2)
        u = reward_w - reward_l - alpha * beta * (distance_l - distance_w.detach())
        loss = -F.logsigmoid(u).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def measure_fpo(a):
    steps, times, loss = fpo_steps(a), [], None
    for step in range(a.steps + 1):
        begun = time.perf_counter()
        loss = next(steps)
        synchronize(a)
        if step:
            times.append(time.perf_counter() - begun)
    return times, loss


def measure_trl(a):
    import datasets
    import tokenizers
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):
        """Takes token ids as they are."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    class Clock(transformers.TrainerCallback):
        times = []

        def on_step_begin(self, *args, **kwargs):
            self.begun = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            synchronize(a)
            self.times.append(time.perf_counter() - self.begun)

    words = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}, unk_token="<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")
    pairs = [pair for batch in random_batches(a) for pair in batch]
    longest = max(len(p["prompt_ids"]) + len(p[side]) for p in pairs for side in ("chosen_ids", "rejected_ids"))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder, loss_type=["sigmoid_norm"], beta=0.1, precompute_ref_log_probs=True, learning_rate=5e-7,
            per_device_train_batch_size=a.pairs, max_steps=a.steps + 1, max_length=longest, report_to="none",
            save_strategy="no", logging_steps=1000, disable_tqdm=True, use_cpu=a.device == "cpu",
            bf16=a.precision == "bf16-mixed", gradient_checkpointing=a.checkpoint_activations,
            lr_scheduler_type="constant", max_grad_norm=1.0, dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        clock = Clock()
        trainer = Prepared(random_model(a), args=config, processing_class=tokenizer, callbacks=[clock],
                           train_dataset=datasets.Dataset.from_list(pairs))
        loss = trainer.train().training_loss
    return clock.times[1:], loss


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    if on_gpu(a):
        # TRL takes the current device.
        torch.cuda.set_device(torch.device(a.device).index or 0)
        # Products of float32 in TF32, as Burn's are on tensor cores.
        torch.set_float32_matmul_precision("high")
    stdout, sys.stdout = sys.stdout, sys.stderr
    times, loss = measure_fpo(a) if a.peer == "torch" else measure_trl(a)
    sys.stdout = stdout
    if len(times) != a.steps:
        raise SystemExit(f"{len(times)} steps were measured instead of {a.steps}")
    batches = batches_of_lengths(a)
    seconds = statistics.median(times) if len(batches) == 1 else statistics.mean(times)
    in_turn = [batches[step % len(batches)] for step in range(1, a.steps + 1)]
    tokens = statistics.mean(sum(2 * p + c + r for p, c, r in batch) for batch in in_turn)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if a.peer == "trl":
        import trl
        versions["trl"] = trl.__version__
    print(json.dumps({
        "peer": a.peer,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **device_memory(a),
        "steps": len(times),
        "tokens": int(tokens + 0.5),
        "loss": loss,
        "versions": versions,
    }))


if __name__ == "__main__":
    main()
