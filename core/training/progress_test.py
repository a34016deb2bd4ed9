import io

import pytest

from core.training import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def make(stream, start_step=0):
  return progress.Progress(total_steps=100, start_step=start_step, batch_size=32, steps_per_epoch=10.0, stream=stream)


def test_elsewhere_than_on_a_terminal_there_are_plain_lines_only():
  stream = io.StringIO()
  show = make(stream)
  show.wait("compiling")
  show.tick(1)
  timings = show.log(10, loss=0.5)
  show.evaluated(10, {"val/prec@1": 0.971, "val/loss": 0.1}, seconds=0.0)
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith("step 10/100  loss 0.5000  ")
  assert "epoch 1.0" in lines[0]
  assert lines[1] == "step 10: val/prec@1 97.10%  val/loss 0.1  (0.0 s)"
  assert "\x1b" not in stream.getvalue()
  assert timings["time/images_per_second"] == pytest.approx(32 / timings["time/step_seconds"])


def test_how_long_a_run_goes_on_is_said_from_the_second_measure_on():
  stream = io.StringIO()
  show = make(stream)
  for step in (1, 50, 100):
    show.log(step, loss=0.5)
  first, second, last = stream.getvalue().splitlines()
  assert first.endswith("images/s  epoch 0.1")
  assert second.endswith(" left")
  assert last.endswith("epoch 10.0  0:00 left")


def test_on_a_terminal_one_line_redraws_itself_and_results_stay():
  stream = Terminal()
  show = make(stream)
  show.wait("compiling")
  show.say("compiled in 1.0 s")
  show.tick(1)
  show.log(10, loss=0.5)
  show.evaluated(10, {"val/prec@1": 0.971}, seconds=0.0)
  show.tick(11)
  show.close()
  text = stream.getvalue()
  drawn = [text.index(each) for each in ("compiling ...", "compiled in", "step 1/100", "step 10: val/prec@1 97.10%")]
  assert drawn == sorted(drawn)
  assert "step 11/100  loss 0.5000" in text
  assert text.endswith("\x1b[2K")


def test_evaluation_does_not_count_as_training_time():
  show = make(io.StringIO())
  show.evaluated(0, {}, seconds=-1_000.0)  # As if the clock stood a thousand seconds back.
  assert show.log(10, loss=0.5)["time/step_seconds"] > 99


def test_skipped_examples_are_told_each_time_there_are_more():
  stream = io.StringIO()
  show = make(stream)
  for count in (0, 3, 3, 5):
    show.skipped(count)
  assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["3", "5"]


def test_other_processes_print_nothing():
  show = make(None)
  show.say("x")
  show.log(10, loss=0.5)


@pytest.mark.parametrize("seconds, text", [(5, "0:05"), (75, "1:15"), (3_700, "1:01:40")])
def test_durations_read_like_a_clock(seconds, text):
  assert progress.duration(seconds) == text


@pytest.mark.parametrize(
  "name, text",
  [
    ("val/prec@5", "97.10%"),
    ("fewshot/pets_10shot", "97.10%"),
    ("fewshot/10shot_l2", "0.971"),
    ("fewshot/pets_10shot_std", "0.971"),
    ("knn/pre_logits/pets_20nn", "97.10%"),
    ("val/ece", "0.971"),
  ],
)
def test_accuracies_are_shown_as_percent(name, text):
  assert progress.format_metric(name, 0.971) == text
