"""A folder of Transformers, in float32, from a language model in GGUF: python runs/from_gguf.py MODEL.gguf FOLDER.

Needs the packages gguf and accelerate. What was quantized stays as coarse as it was.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it runs away into the dark forest."


def main() -> None:
    """Convert, read the folder again, and print what tells whether the model can still speak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    named = {"gguf_file": args.gguf.name}
    # A model that keeps its quantized blocks cannot be saved.
    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        args.gguf.parent, dtype=torch.float32, quantization_config=whole, **named
    )
    model.save_pretrained(args.folder)
    AutoTokenizer.from_pretrained(args.gguf.parent, **named).save_pretrained(args.folder)

    model, tokenizer = (kind.from_pretrained(args.folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    begun = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        print(f"perplexity {model(ids, labels=ids).loss.exp():.1f}: {SENTENCE}")
        print(tokenizer.decode(model.generate(**begun, max_new_tokens=8, do_sample=False)[0]))


if __name__ == "__main__":
    main()
