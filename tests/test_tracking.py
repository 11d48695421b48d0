"""TensorBoard writing, read back with TensorBoard's own reader."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from icrl_gym.tracking import NullWriter, check_writable, open_writer


def read_events(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_scalars_come_back_as_written(tmp_path):
    with open_writer(tmp_path / "log") as writer:
        writer.add_scalar("a/b", 0.25, 3)
        writer.add_scalar("a/b", 0.5, 4)
    points = read_events(tmp_path / "log").Scalars("a/b")
    assert [(point.step, point.value) for point in points] == [(3, 0.25), (4, 0.5)]


def test_a_figure_becomes_an_image_of_its_own_size(tmp_path):
    figure = Figure(figsize=(3, 2), dpi=50)
    figure.subplots().plot([0, 1])
    with open_writer(tmp_path) as writer:
        writer.add_figure("picture", figure, 0)
    (image,) = read_events(tmp_path).Images("picture")
    assert (image.width, image.height) == (150, 100)
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_drawing_a_figure_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with open_writer(tmp_path) as writer:
        writer.add_figure("picture", Figure(), 0)
    assert plt.get_fignums() == before == []


def test_hparams_stand_in_the_same_run_as_the_scalars(tmp_path):
    from tensorboard.plugins.hparams import metadata

    with open_writer(tmp_path) as writer:
        writer.add_scalar("loss", 1.0, 0)
        writer.add_hparams({"gamma": 0.99, "env": "CartPole-v1", "path": Path("x"), "none": None}, {"hparam/rmse": 2.0})
    (only,) = tmp_path.iterdir()  # one event file, no sub-folder
    assert only.is_file()
    events = read_events(tmp_path)
    assert events.Scalars("loss")[0].value == 1.0
    assert [(point.step, point.value) for point in events.Scalars("hparam/rmse")] == [(0, 2.0)]
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert started.hparams["gamma"].number_value == 0.99
    assert started.hparams["env"].string_value == "CartPole-v1"
    assert (started.hparams["path"].string_value, started.hparams["none"].string_value) == ("x", "None")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_writer(None) as writer:
        assert isinstance(writer, NullWriter)
        writer.add_scalar("a", 1.0, 0)
        writer.add_figure("b", Figure(), 0)
        writer.add_hparams({"a": 1}, {"b": 2.0})
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_stay_numbers(tmp_path):
    from tensorboard.plugins.hparams import metadata

    with open_writer(tmp_path) as writer:
        writer.add_scalar("a", np.float64(1.5), 0)
        writer.add_hparams({"n": np.int64(3)}, {"m": np.float64(2.5)})
    events = read_events(tmp_path)
    assert (events.Scalars("a")[0].value, events.Scalars("m")[0].value) == (1.5, 2.5)
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert started.hparams["n"].number_value == 3


@pytest.mark.parametrize("inside", ["file", "file/log", "file/deeper/log"])
def test_a_folder_that_cannot_be_made_is_one_line_before_any_work(tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError), match="log_dir: cannot write to the folder") as caught:
        open_writer(tmp_path / inside)
    assert "\n" not in str(caught.value)


def test_a_folder_without_write_permission_keeps_its_error_type(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("icrl_gym.tracking.tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"log_dir: cannot write to the folder .*Permission denied"):
        check_writable(tmp_path, "log_dir")
