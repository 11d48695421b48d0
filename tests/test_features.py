import numpy as np
import pytest
from gymnasium import spaces

from icrl_gym.context.features import FeatureMap


def test_box_coordinates_are_standardised_by_the_context_alone():
    context = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    feature_map = FeatureMap(spaces.Box(-np.inf, np.inf, (2,), np.float64)).fit(context)
    spread = np.sqrt(8 / 3)
    np.testing.assert_allclose(feature_map(np.array([[6.0, 7.0]])), [[4 / spread, 0.0]])
    assert feature_map.effective_dimension == 1  # the constant coordinate does not count


def test_float32_rounding_noise_does_not_make_a_constant_coordinate_vary():
    context = np.full((50, 1), 1000.0, dtype=np.float32)
    context[::2] = np.nextafter(context[0], np.float32(2000))
    assert np.all(FeatureMap(spaces.Box(-np.inf, np.inf, (1,))).fit(context)(context) == 0)


def test_lone_discrete_values_are_far_apart_and_offsets_are_respected():
    feature_map = FeatureMap(spaces.Discrete(3, start=-1)).fit(np.array([-1, 0, 1]))
    features = feature_map(np.array([-1, 1, 1]))
    np.testing.assert_array_equal(features, [[4, 0, 0], [0, 0, 4], [0, 0, 4]])
    assert np.all(feature_map(np.array([7])) == 0)  # outside the space: no feature, the evaluator warns


def test_large_discrete_spaces_get_seeded_unit_vectors_that_depend_on_the_value_alone():
    first = FeatureMap(spaces.Discrete(500)).fit(np.array([0, 1]))(np.array([3, 499, 3]))
    second = FeatureMap(spaces.Discrete(10**6)).fit(np.array([0]))(np.array([499]))
    assert first.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 4.0)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], second[0])
    assert np.linalg.norm(first[0] - first[1]) > 4.0


def test_a_differing_bit_or_category_adds_two_to_the_squared_distance():
    bits = FeatureMap(spaces.MultiBinary(3)).fit(np.array([[0, 0, 1]]))(np.array([[0, 1, 1], [1, 1, 1]]))
    np.testing.assert_allclose(np.square(bits[0] - bits[1]).sum(), 2.0)
    pair = FeatureMap(spaces.MultiDiscrete([3, 4])).fit(np.array([[0, 0], [1, 0]]))
    codes = pair(np.array([[0, 1], [2, 1]]))
    np.testing.assert_allclose(np.square(codes[0] - codes[1]).sum(), 2.0)
    assert codes.shape == (2, 7)
    assert pair.effective_dimension == 1


def test_wide_multidiscrete_is_treated_as_numbers():
    feature_map = FeatureMap(spaces.MultiDiscrete([1000, 1000])).fit(np.array([[0, 0], [2, 4]]))
    np.testing.assert_allclose(feature_map(np.array([[2, 0]])), [[1.0, -1.0]])


def test_nested_dicts_and_tuples_put_their_parts_side_by_side_in_the_order_of_the_space():
    space = spaces.Dict(
        {"goal": spaces.Box(-1, 1, (2,)), "arm": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))])}
    )
    rng = np.random.default_rng(0)
    context = {"goal": rng.normal(size=(20, 2)), "arm": (rng.integers(2, size=20), rng.normal(size=(20, 1)))}
    feature_map = FeatureMap(space).fit(context)
    reordered = {"arm": context["arm"], "goal": context["goal"]}
    np.testing.assert_array_equal(feature_map(context), feature_map(reordered))
    assert feature_map(context).shape == (20, 5)
    assert feature_map.effective_dimension == 4


def test_images_are_pooled_and_projected_to_64_standardised_numbers():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (30, 84, 84, 3), dtype=np.uint8)
    feature_map = FeatureMap(spaces.Box(0, 255, (84, 84, 3), np.uint8)).fit(frames)
    features = feature_map(frames)
    assert features.shape == (30, 64)
    np.testing.assert_allclose(features.std(axis=0), 1.0)
    np.testing.assert_allclose(features[3:5], feature_map(frames[3:5]), atol=1e-12)


def test_channels_first_and_last_pool_the_same_pixels():
    rng = np.random.default_rng(0)
    last = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    from icrl_gym.context.features import _flatten

    first = np.moveaxis(last, -1, 1)
    by_channel = _flatten(last).reshape(4, 16, 16, 3)
    np.testing.assert_allclose(_flatten(first).reshape(4, 3, 16, 16), np.moveaxis(by_channel, -1, 1))
    np.testing.assert_allclose(by_channel[0, 0, 0], last[0, :2, :2].reshape(4, 3).mean(axis=0))


def test_long_vectors_keep_their_distances_on_average_after_projection():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 300))
    features = FeatureMap(spaces.Box(-np.inf, np.inf, (300,))).fit(vectors)(vectors)
    ratio = np.square(features[:100] - features[100:]).sum(1).mean() / 64
    assert 1.8 < ratio < 2.2  # two independent draws of a standardised coordinate differ by 2


def test_own_feature_function_is_standardised_and_checked():
    space = spaces.Box(-1, 1, (2,))
    context = np.array([[0.0, 1.0], [2.0, 3.0]])
    feature_map = FeatureMap(space, lambda obs: obs[:, :1] * 10).fit(context)
    np.testing.assert_allclose(feature_map(context), [[-1.0], [1.0]])
    with pytest.raises(ValueError, match=r"must return \(2, D\), got \(2,\)"):
        FeatureMap(space, lambda obs: obs[:, 0]).fit(context)


@pytest.mark.parametrize(
    "space",
    [spaces.Text(5), spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(2))],
)
def test_spaces_without_features_are_refused_by_name(space):
    with pytest.raises(TypeError, match=r"observations\['note'\].*cannot be turned into features"):
        FeatureMap(spaces.Dict({"note": space, "x": spaces.Discrete(2)}))


def test_bad_queries_name_what_is_wrong():
    feature_map = FeatureMap(spaces.Box(-1, 1, (2,))).fit(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 2\).*got \(3, 4\)"):
        feature_map(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"observations\[1, 0\] is nan"):
        feature_map(np.array([[0, 0], [np.nan, 0]]))
    with pytest.raises(TypeError, match="must be one array"):
        feature_map({"a": np.zeros((3, 2))})


def test_an_empty_batch_of_images_has_no_rows_and_all_columns():
    images = np.random.default_rng(0).integers(0, 255, size=(30, 40, 40, 3), dtype=np.uint8)
    feature_map = FeatureMap(spaces.Box(0, 255, (40, 40, 3), np.uint8)).fit(images)
    assert feature_map(images[:0]).shape == (0, feature_map(images[:2]).shape[1])


def goal_space(achieved=(2,), desired=(2,), dtype=np.float64):
    box = lambda shape: spaces.Box(-np.inf, np.inf, shape, dtype)  # noqa: E731
    return spaces.Dict({"observation": box((1,)), "achieved_goal": box(achieved), "desired_goal": box(desired)})


def test_a_goal_adds_the_difference_and_the_distance_that_is_left():
    batch = {
        "observation": np.zeros((3, 1)),
        "achieved_goal": np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 5.0]]),
        "desired_goal": np.array([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]]),
    }
    feature_map = FeatureMap(goal_space()).fit(batch)
    added = np.array([[-3.0, -4.0, 5.0], [0.0, -4.0, 4.0], [0.0, 1.0, 1.0]])
    features = feature_map(batch)
    assert features.shape == (3, 8)
    np.testing.assert_allclose(features[:, 5:], (added - added.mean(axis=0)) / added.std(axis=0))
    for key, part in feature_map.inverse(features).items():
        np.testing.assert_allclose(part, batch[key])


def test_moved_features_are_completed_by_those_of_the_goal():
    generator = np.random.default_rng(0)
    batch = {key: generator.normal(size=(20, *part.shape)) for key, part in goal_space().items()}
    feature_map = FeatureMap(goal_space()).fit(batch)
    moved = feature_map(batch)
    moved[:, -3:] = 9.0
    np.testing.assert_allclose(feature_map.completed(moved.reshape(4, 5, 8)).reshape(20, 8), feature_map(batch))
    plain = FeatureMap(spaces.Box(-1.0, 1.0, (2,))).fit(np.eye(2, dtype=np.float32))
    assert plain.completed(moved) is moved


@pytest.mark.parametrize(
    "space",
    [
        goal_space(desired=(3,)),
        goal_space(dtype=np.int64),
        spaces.Dict({"achieved_goal": spaces.Box(-1.0, 1.0, (2,))}),
        spaces.Dict({"achieved_goal": spaces.Box(-1.0, 1.0, (2,)), "desired_goal": spaces.Discrete(2)}),
        spaces.Box(-1.0, 1.0, (2,)),
    ],
)
def test_what_cannot_be_compared_is_no_goal(space):
    assert not FeatureMap(space).has_goal
    assert not FeatureMap(goal_space(), lambda batch: batch["observation"]).has_goal
