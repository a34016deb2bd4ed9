"""The command line of tools:port_config: what it reads, writes and tells, and its exit statuses."""

import json
import textwrap

import pytest

from core.errors import UserError
from core.recipe import load
from tools.port_config import port_config, read, write
from tools.port_config.examples import classifier, evaluation


def ported(tmp_path, config, *flags):
  """Ports a config through its JSON file; returns the path of the result."""
  source, output = tmp_path / "config.json", tmp_path / "mine.py"
  source.write_text(json.dumps(config))
  assert port_config.main([f"--config={source}", f"--output={output}", *(flags or ["--no_dry_run"])]) == 0
  return output


def test_what_became_of_each_key_is_told(tmp_path, capsys):
  ported(tmp_path, evaluation(cache_final=True, prefix="z/") | dict(pp_modules=["ops_image"]))
  told = capsys.readouterr().out
  assert "renamed\n  evals.*.cache_final -> evals.*.cache\n" in told
  assert "without effect here\n  pp_modules: all ops are there, always\n" in told
  assert "  no mesh -> mesh = [('data', -1)]" in told
  assert told.endswith(f"written to {tmp_path / 'mine.py'}, a config of the project vit\n")


def test_the_file_says_only_what_is_not_the_default(tmp_path):
  config = load.read(str(ported(tmp_path, classifier(optax=dict(b1=0.9, b2=0.95), wd=None, mixup=dict(p=0.0)))))
  assert config["optax"] == dict(b2=0.95)
  assert "mixup" not in config
  assert config["loss"] == "softmax_xent"


def test_a_refused_key_is_left_out_and_ends_in_a_line(tmp_path):
  source, output = tmp_path / "config.json", tmp_path / "mine.py"
  source.write_text(json.dumps(evaluation(type="no_such_evaluator")))
  with pytest.raises(UserError, match=r"^1 entries could not be ported and are left out: evals\.val$"):
    port_config.main([f"--config={source}", f"--output={output}", "--no_dry_run"])
  assert "evals" not in load.read(str(output))
  assert "Left out, for it could not be ported: evals.val (there is no evaluator" in output.read_text()


def test_a_file_of_python_is_run_with_the_checkout_that_it_imports_from(tmp_path):
  folder = tmp_path / "checkout" / "big_vision" / "configs"
  folder.mkdir(parents=True)
  (folder / "common.py").write_text("def loss():\n  return 'softmax_xent'\n")
  source = folder / "mine.py"
  source.write_text(
    textwrap.dedent(f"""\
      import big_vision.configs.common as common

      def get_config(arg="seed=4"):
        return {classifier()!r} | dict(loss=common.loss(), seed=int(arg.partition("=")[2]))
    """)
  )
  checkout = str(tmp_path / "checkout")
  assert read.config(str(source), checkout)["seed"] == 4
  assert read.config(f"{source}:seed=5", checkout) == {**classifier(), "seed": 5}
  with pytest.raises(UserError, match="is no checkout of big_vision"):
    read.config(str(source), str(tmp_path))


@pytest.mark.parametrize(
  "name, content, line",
  [
    ("a.json", "{", "is no config.json"),
    ("a.json", "[1]", "a config is a dict, not tuple"),
    ("a.py", "1 / 0", "a.py:1: ZeroDivisionError"),
    ("a.py", "def get_config():\n  raise ValueError('one\\ntwo')", "a.py:2: ValueError: one$"),
    ("a.py", "import big_vision.no_such", "give --big_vision=CHECKOUT$"),
  ],
)
def test_a_file_that_is_no_config_is_refused_in_a_line(name, content, line, tmp_path):
  file = tmp_path / name
  file.write_text(content)
  with pytest.raises(UserError, match=line) as refused:
    read.config(str(file))
  assert "\n" not in str(refused.value)


def test_an_output_that_is_no_file_of_python_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"^--output must end in \.py"):
    port_config.main(["--config=a.json", f"--output={tmp_path / 'a.json'}"])


@pytest.mark.parametrize(
  "value", ["a 'b' \"c\"", "\\d+\n", (), (1,), [(".*", None)], {"a-b": 1, "if": 2}, 1e-30, -5, None]
)
def test_values_are_written_so_that_python_reads_them(value):
  for indent in (0, 100):
    assert eval(write._value(value, indent, 0)) == value


def test_a_dry_run_checks_the_result(tmp_path, capsys):
  config = classifier(num_classes=10, model=dict(variant="mu/16"), lr_mults=[["no_such/.*", 2.0], ["head/.*", 0.5]])
  config["input"] |= dict(data=dict(name="digits", split="train"), pp=PP_OF_DIGITS)
  output = ported(tmp_path, config, "--cpu_devices=1")
  told = capsys.readouterr().out
  assert "learning rates and weight decays" in told
  assert "lr_mults: 'no_such/.*' -> lr_mults: it decides for no parameter, which is allowed there; left out" in told
  assert load.read(str(output))["lr_mults"] == (("head/.*", 0.5),)


PP_OF_DIGITS = (
  "resize(16)|value_range(-1, 1, 0, 16)|onehot(10, key='label', key_result='labels')|keep('image', 'labels')"
)
