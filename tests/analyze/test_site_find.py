"""The laws of what a caption finds on the site."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from thresher.analyze.site.find import N_FOUND, find_images
from thresher.analyze.site.items import Book, Catalogue


@pytest.mark.parametrize(("n_images", "signed"), [(1, False), (7, True), (33, False)])
def test_images_are_found_by_the_inner_product_of_their_codes(n_images: int, signed: bool) -> None:
    generator = np.random.default_rng(n_images)
    image, text = (generator.gamma(2.0, size=(n, 9)) * (generator.random((n, 9)) < 0.4) for n in (n_images, 2 * n_images))
    if signed:
        image, text = image * generator.choice([-1, 1], image.shape), text * generator.choice([-1, 1], text.shape)
    pairs = np.stack([np.repeat(np.arange(n_images), 2), np.arange(2 * n_images)], axis=1)
    books = tuple(Book(Catalogue(None, np.arange(n)), np.arange(n)) for n in (n_images, 2 * n_images))
    found = find_images((csr_array(image), csr_array(text)), pairs, books, 60, 0)
    assert len(found["captions"]) == found["n_images"] == n_images
    for caption in found["captions"]:
        asked = books[1].positions[caption["text"]]
        own, scores = asked // 2, image @ text[asked]
        assert caption["rank"] == ((scores >= scores[own]).sum() if scores[own] > 0 else None)
        best = np.sort(scores[scores > 0])[::-1][:N_FOUND]
        np.testing.assert_allclose([one["score"] for one in caption["found"]], best)
        for one in caption["found"]:
            item = books[0].positions[one["image"]]
            assert one["own"] == (item == own)
            terms = [term for *_, term in one["matches"]]
            assert all(term == pytest.approx(image[item, f] * text[asked, f]) for f, _, _, term in one["matches"])
            whole = image[item] * text[asked]
            np.testing.assert_allclose(np.abs(terms), np.sort(np.abs(whole[whole != 0]))[::-1][: len(terms)])
