"""What every model adapter must do. Subclass `AdapterSuite` in a test, give it the model and the model's own outputs."""

import json
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from thresher.errors import ModelError
from thresher.harvest.adapters.base import Adapter, Inputs, TokenKind
from thresher.testing.probes import (
    capture,
    count_hooks,
    divide_by_zero,
    find_place,
    make_images,
    make_inputs,
    resolve_tower,
    run_forward,
    take_first,
    watch,
)

LONG_TEXT = "one word after another and no end " * 400


class AdapterSuite:
    """Laws of adapters. A subclass gives `open_adapter`, `module_path`, `find_own_outputs` and `places`."""

    module_path: str
    """A module inside a tower whose output is one tensor [item, position, d] or [item, d]."""
    places: ClassVar[Mapping[str, str]] = {}
    """Hook points inside blocks and where a reader of the model's code would hook them, `{i}` for the number of the block:
    {"text.{i}.neurons": "model.layers.{i}.mlp.down_proj@in"}. With `find_own_outputs` they must be all hook points."""

    def open_adapter(self) -> Adapter:
        """The adapter under test, on the CPU, in float32."""
        raise NotImplementedError

    def find_model(self, adapter: Adapter) -> nn.Module:
        """The model behind the adapter."""
        model: nn.Module = getattr(adapter, "model")  # noqa: B009 - not every adapter has one
        return model

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        """What the library itself gives for these inputs, by hook point: `output_hidden_states`, `encode_image`, ..."""
        raise NotImplementedError

    @pytest.fixture
    def adapter(self) -> Adapter:
        """The adapter under test, opened once for all tests of a class."""
        if "_opened" not in type(self).__dict__:
            setattr(type(self), "_opened", self.open_adapter())  # noqa: B010 - the type of a class knows no such field
        return type(self).__dict__["_opened"]

    def test_it_is_an_adapter(self, adapter: Adapter) -> None:
        assert isinstance(adapter, Adapter)
        assert adapter.modalities
        assert len(set(adapter.hook_points)) == len(adapter.hook_points)

    def test_every_hook_point_fires_with_the_shape_of_its_inputs(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs, points = make_inputs(adapter, modality), resolve_tower(adapter, modality)
            captured = capture(adapter, inputs, points)
            for point in points:
                first = inputs.shape if point.level == "tokens" else (len(inputs.layout.valid),)
                assert captured[point.name].shape == (*first, point.width)

    def test_activations_equal_the_models_own_outputs_bit_for_bit(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs, points = make_inputs(adapter, modality), resolve_tower(adapter, modality)
            with torch.inference_mode():
                own = self.find_own_outputs(self.find_model(adapter), inputs)
            captured = capture(adapter, inputs, points)
            inside = {name for name in captured if find_place(self.places, name) is not None}
            assert set(own) | inside == set(captured), "find_own_outputs and places must give every hook point"
            for name, expected in own.items():
                assert torch.equal(captured[name], expected), name

    def test_places_inside_blocks_are_where_a_plain_hook_finds_them(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs, points = make_inputs(adapter, modality), resolve_tower(adapter, modality)
            inside = {point.name: find_place(self.places, point.name) for point in points}
            expected = watch(
                self.find_model(adapter), {name: place for name, place in inside.items() if place}, adapter, inputs
            )
            captured = capture(adapter, inputs, points)
            for name, value in expected.items():
                assert torch.equal(captured[name], value.reshape(captured[name].shape)), name

    def test_heads_side_by_side_are_the_whole(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs = make_inputs(adapter, modality)
            for point in resolve_tower(adapter, modality):
                if not point.name.endswith(".z"):
                    continue
                heads = adapter.resolve([f"{point.name}/heads"], [modality])
                captured = capture(adapter, inputs, [point, *heads])
                assert len(heads) > 1
                assert torch.equal(torch.cat([captured[head.name] for head in heads], dim=-1), captured[point.name])

    def test_a_module_by_its_path_equals_a_plain_forward_hook(self, adapter: Adapter) -> None:
        (point,) = adapter.resolve([f"module:{self.module_path}"], adapter.modalities)
        inputs, seen = make_inputs(adapter, point.modality), []
        module = self.find_model(adapter).get_submodule(self.module_path)
        handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
        with torch.inference_mode():
            adapter.forward(inputs)
        handle.remove()
        assert torch.equal(capture(adapter, inputs, [point])[point.name], seen[0])

    def test_no_hook_stays_behind(self, adapter: Adapter) -> None:
        model = self.find_model(adapter)
        before = count_hooks(model)
        points = adapter.resolve(["**"], adapter.modalities)
        for modality in adapter.modalities:
            inputs = make_inputs(adapter, modality)
            mine = [point for point in points if point.modality == modality]
            capture(adapter, inputs, mine)
            broken = Inputs(modality, {}, inputs.layout)
            with pytest.raises((TypeError, KeyError, ValueError, AttributeError)):
                capture(adapter, broken, mine)
            with pytest.raises(ZeroDivisionError), adapter.splice(mine[0].name, divide_by_zero):
                adapter.forward(inputs)
        assert count_hooks(model) == before

    def test_images_are_prepared_alike_without_the_model(self, adapter: Adapter) -> None:
        transform = adapter.image_transform
        if "image" not in adapter.modalities:
            assert transform is None
            return
        assert transform is not None
        n_parameters = sum(parameter.numel() for parameter in self.find_model(adapter).parameters())
        travelled = pickle.dumps(transform)
        assert len(travelled) < max(4 * n_parameters, 20_000), "the model is in it"
        images = make_images(3)
        here, there = adapter.prepare_images(images), pickle.loads(travelled)(images)
        assert set(here.tensors) == set(there.tensors)
        assert all(torch.equal(here.tensors[name], there.tensors[name]) for name in here.tensors)
        assert torch.equal(here.layout.kind, there.layout.kind)

    def test_one_forward_serves_all_hook_points(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs, points = make_inputs(adapter, modality), resolve_tower(adapter, modality)
            together = capture(adapter, inputs, points)
            for point in points:
                assert torch.equal(capture(adapter, inputs, [point])[point.name], together[point.name])

    def test_rows_of_an_item_do_not_depend_on_its_neighbours(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            points = resolve_tower(adapter, modality)
            alone, among = make_inputs(adapter, modality, n=1), make_inputs(adapter, modality)
            assert int(alone.layout.valid[0].sum()) == int(among.layout.valid[0].sum())
            one, many = capture(adapter, alone, points), capture(adapter, among, points)
            for point in points:
                a, b = (take_first(captured[point.name], inputs, point) for captured, inputs in ((one, alone), (many, among)))
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_the_summary_position_is_inside_the_item(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            layout = make_inputs(adapter, modality).layout
            kinds = set(layout.kind.unique().tolist()) - {TokenKind.PADDING}
            texts, images = (
                {TokenKind.TEXT, TokenKind.SPECIAL, TokenKind.IMAGE},
                {TokenKind.PATCH, TokenKind.CLS, TokenKind.REGISTER},
            )
            assert kinds <= (texts if modality == "text" else images)
            assert not (layout.special & ~layout.valid).any()
            if layout.summary is not None:
                assert ((layout.summary >= 0) & (layout.summary < layout.valid.shape[1])).all()
            assert (layout.token_id is not None) == (modality == "text")

    def test_patches_and_image_tokens_know_their_place_and_nothing_else_does(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            layout = make_inputs(adapter, modality).layout
            is_placed = (layout.kind == TokenKind.PATCH) | (layout.kind == TokenKind.IMAGE)
            assert (layout.grid is not None) == bool(is_placed.any())
            if layout.grid is not None:
                assert torch.equal((layout.grid >= 0).all(dim=-1), is_placed)
                assert torch.equal((layout.grid < 0).all(dim=-1), ~is_placed)

    def test_no_padding_stands_before_content(self, adapter: Adapter) -> None:
        if "text" in adapter.modalities:
            layout = make_inputs(adapter, "text").layout
            is_after_padding = (~layout.valid).cumsum(dim=1) > 0
            assert not (layout.valid & ~layout.special & is_after_padding).any()

    def test_a_long_text_is_truncated_and_says_so(self, adapter: Adapter) -> None:
        if "text" in adapter.modalities:
            texts = ["short", LONG_TEXT]
            inputs = adapter.prepare_pairs([None, None], texts) if adapter.reads_pairs else adapter.prepare_texts(texts)
            layout = inputs.layout
            assert layout.is_truncated == (False, True)
            assert layout.valid[1].all()

    def test_splicing_what_was_there_changes_nothing(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs = make_inputs(adapter, modality)
            before = run_forward(adapter, inputs)
            for point in resolve_tower(adapter, modality):
                with adapter.splice(point.name, lambda activation: activation):
                    assert torch.equal(run_forward(adapter, inputs), before), point.name

    def test_splicing_zeros_changes_the_output_and_only_while_it_lasts(self, adapter: Adapter) -> None:
        for modality in adapter.modalities:
            inputs = make_inputs(adapter, modality)
            before = run_forward(adapter, inputs)
            for point in resolve_tower(adapter, modality):
                with adapter.splice(point.name, torch.zeros_like):
                    assert capture(adapter, inputs, [point])[point.name].abs().max() < 1e-5, point.name
                    assert not torch.allclose(run_forward(adapter, inputs), before), point.name
                assert torch.equal(run_forward(adapter, inputs), before)

    def test_a_splice_of_another_shape_is_refused(self, adapter: Adapter) -> None:
        modality = adapter.modalities[0]
        point = resolve_tower(adapter, modality)[0]
        with adapter.splice(point.name, lambda activation: activation[..., :1]), pytest.raises(ModelError, match="splice"):
            run_forward(adapter, make_inputs(adapter, modality))

    def test_an_unknown_name_is_refused_with_the_nearest(self, adapter: Adapter) -> None:
        known = adapter.hook_points[0]
        with pytest.raises(ModelError, match=known):
            adapter.resolve([known + "x"], adapter.modalities)

    def test_globs_give_each_hook_point_once_in_order(self, adapter: Adapter) -> None:
        points = adapter.resolve(["**", adapter.hook_points[0]], adapter.modalities)
        assert tuple(point.name for point in points) == adapter.hook_points

    def test_identity_is_plain_and_stable(self, adapter: Adapter) -> None:
        assert json.loads(json.dumps(dict(adapter.identity))) == dict(adapter.identity)
        assert dict(self.open_adapter().identity) == dict(adapter.identity)
        assert len(adapter.identity["weights"]) == 64
