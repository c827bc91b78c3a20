"""HookedDiffusion: a pipeline of diffusers whose denoiser has TransformerLens' hook points."""

__all__ = ["HookedDiffusion"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Address, as_index
from vit_lens.decoders import free_memory, load_pipeline
from vit_lens.diffusion.addressed import AddressedPipeline
from vit_lens.diffusion.calls import Call, generators
from vit_lens.diffusion.described import DescribedPipeline
from vit_lens.diffusion.kept import BranchCache, Kept, as_named
from vit_lens.diffusion.losses import losses_of
from vit_lens.diffusion.passes import Passes
from vit_lens.diffusion.wiring import Place, attach, check_wirable
from vit_lens.errors import VitLensError
from vit_lens.hooking import AimedGuard, Keeper, Name, SteppedCache, as_device, is_hooked

_BRANCHES = ("cond", "uncond")
_OTHER_NOISE = 0x5EED  # what is exclusively-ored into seeds, for noise of its own
_MEMORY_KINDS = ("cpu", "cuda", "mps")


class HookedDiffusion(AddressedPipeline, DescribedPipeline):
    """A text-to-image pipeline whose denoiser has hook points: the stock modules run, and hand over what is asked for.

    :class:`HookedFlux` and :class:`HookedUNet` are this for FLUX.1 and for Stable Diffusion, and say which hook points
    there are; of Stable Diffusion 3, ``HookedDiffusion`` itself takes the pipeline, with FLUX's names of ``double``
    blocks. Which hook points there are is a table, :data:`vit_lens.diffusion.DENOISERS`.

    A hook function is given ``[batch pos ...]`` of one branch of guidance, and reads ``hook.step`` (``.index``,
    ``.sigma``), ``hook.sigma`` and ``hook.branch`` ("cond" or "uncond"); what it returns stands in the place of what
    the stock module had. Wherever the name of a hook point is taken, so is an address (:meth:`aims`): the function is
    then given what that names, one head or one token for example, in its step alone. A step is one pass of the sampler,
    counted from 0. Where no hook is on a point, nothing is on the stock modules, and outside of calls nothing ever is:
    pictures without hooks, and with hooks that only read, are the stock pipeline's to the last bit.

    Pipelines run under ``torch.no_grad``, so that hooks see no gradients; :meth:`attached` is for those.

    Args:
        pipeline: The pipeline in memory. It is used as it is, and not changed; adapters (LoRA) may be loaded, fused or
            taken off between calls, since modules are looked up in each.
        model_id: The id of its weights; None makes one from their content when it is asked for.
        defaults: Arguments of the pipeline that stand in for those that a call does not give.

    Attributes:
        pipeline: The pipeline.
        defaults: As given.
        current_branch: The branch of guidance that a hook fires in; None outside of hooks.

    Raises:
        UnsupportedTowerError: It is no pipeline of these, or its denoiser is of another class.

    >>> sd = vl.HookedDiffusion.from_pretrained("mini-sd")
    >>> latents, cache = sd.run_with_cache("a red star", names_filter="mid.0.hook_update", output_type="latent")
    >>> sd, cache["mid.0.hook_update"].shape
    (HookedUNet(StableDiffusionPipeline, 7 transformers, 7 blocks, float32 on cpu), torch.Size([8, 1, 16, 112]))
    >>> vl.HookedDiffusion(decoder)
    Traceback (most recent call last):
    vit_lens.errors.UnsupportedTowerError: a ... is not hooked here; nearest: ...
    """

    row_branches: tuple[str, ...] = ()
    """The branches in the rows of the pass that runs now; empty outside of a run of the pipeline."""
    current_sides: tuple[int, int] | None = None
    """Height and width in pixels of what is drawn now; None outside of a run of the pipeline."""

    @classmethod
    def from_pipeline(cls, pipeline: Any, *, model_id: str | None = None) -> "HookedDiffusion":
        """Put hook points into a pipeline in memory, which stays as it is.

        Args:
            pipeline: A pipeline of diffusers; offloaded, quantised or with adapters as it may be.
            model_id: The id of its weights; None makes one from their content when it is asked for.

        Returns:
            A model of the class that is for this pipeline.

        Raises:
            UnsupportedTowerError: It is no pipeline that is hooked; the message names the nearest.
        """
        return cls._class_for(pipeline)(pipeline, model_id=model_id)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "HookedDiffusion":
        """Load a pipeline (safetensors only, no code of others) and put hook points into it.

        Args:
            name: "mini-sd", "mini-flux", a local directory that a pipeline was saved in, or a Hub id.
            dtype: The dtype of the weights.
            device: The device of the weights.

        Raises:
            DecoderError: There is no such pipeline, or something is wrong with its files.
            CheckpointError: Weights are missing, truncated, extra or misshapen.
            UnsupportedTowerError: The pipeline is not hooked here.
        """
        pipeline, model_id, said = load_pipeline(name, dtype, device)
        words = {"steps": "num_inference_steps", "guidance": "guidance_scale", "length": "max_sequence_length"}
        defaults = {words.get(key, key): value for key, value in said.items()}
        return cls._class_for(pipeline)(pipeline, model_id=model_id, defaults=defaults)

    @classmethod
    def _class_for(cls, pipeline: Any) -> type["HookedDiffusion"]:
        name = cls._format_of(pipeline)
        return next((one for one in cls.__subclasses__() if name in one.formats), cls)

    # ---- running

    def forward(
        self,
        prompts: str | Sequence[str] | None,
        *,
        steps: int | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """Draw pictures as the pipeline does, with the hooks that are on.

        Noise comes from one generator for each picture, on the CPU: a picture does not depend on which others are drawn
        with it, but for rounding, since matrix products of another number of rows may round otherwise.

        Args:
            prompts: The prompts; None where ``prompt_embeds=`` is given.
            steps: The number of steps (``num_inference_steps``); None for the default.
            seed: One seed for every picture, or one for each; None for 0, or where ``generator=`` or ``latents=`` is
                given.
            **options: Other arguments of the pipeline by their names, such as ``guidance_scale``, ``true_cfg_scale``,
                ``negative_prompt``, ``height``, ``width``, ``max_sequence_length``, ``output_type``.

        Returns:
            What the pipeline returns first: pictures, or latents with ``output_type="latent"``.

        Raises:
            VitLensError: The pipeline has no such argument, or its denoiser cannot be hooked as it is.
        """
        call = self._call(prompts, steps, seed, options)
        if not self._hooked():
            return self.pipeline(**call.given)[0]
        if self.current_step is not None:
            raise VitLensError("a pipeline counts its steps itself; call it outside of `with model.step(...)`")
        self._refuse_absent(call)
        with self.attached(), self._counting(call):
            return self.pipeline(**call.given)[0]

    @torch.no_grad()
    def denoising_loss(
        self,
        prompts: str | Sequence[str],
        latents: Float[Tensor, "input *latent"],
        *,
        steps: int | None = None,
        at_steps: Sequence[int] | None = None,
        branch: Literal["cond", "uncond"] = "cond",
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> Float[Tensor, "step input"]:
        """Return how far the denoiser's predictions of noised pictures are from the truth, with the hooks that are on.

        The stock pipeline runs as it does; in each step the denoiser is given the pictures with noise of that step's
        level in the place of what the sampler has. Along a flow (FLUX, Stable Diffusion 3) that is ``(1 - sigma) x +
        sigma noise``, and the truth ``noise - x``; of a diffusion with ``prediction_type`` epsilon the truth is the
        noise, and with v_prediction ``(noise - sigma x) / sqrt(1 + sigma^2)``. Predictions are those of one branch,
        without guidance.

        Args:
            prompts: A prompt for each picture.
            latents: The pictures, as a call with ``output_type="latent"`` leaves them; :meth:`latents_of` makes them.
            steps: As for :meth:`forward`; the noise levels are those of its steps.
            at_steps: The indices of the steps that are compared; None takes all. The others run, too.
            branch: Which branch's prediction is compared.
            seed: The seed of each picture's noise, or one for all; the noise of a picture is the same at all steps, and
                is not that of a call of the same seed.
            **options: As for :meth:`forward`.

        Returns:
            The mean of the squared error over a picture's latents, in float32 at least, for each step in its order.

        Raises:
            VitLensError: There is no such branch or step in this run, the pictures are of other sizes, or it is not
                known what the denoiser predicts.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> x = sd("a red star", output_type="latent")
        >>> sd.denoising_loss("a red star", x, at_steps=[0, 4]).shape
        torch.Size([2, 1])
        """
        call = self._call(prompts, steps, None, {**options, "output_type": "latent"})
        self._checked_branches(branch if branch != "both" else "both of", call)
        self._checked_steps(at_steps, call)
        every = range(self._steps(call))
        wanted = sorted(set(every if at_steps is None else map(int, at_steps)))
        if not isinstance(latents, Tensor) or len(latents) != call.n_pictures:
            raise VitLensError(f"latents: expected those of {call.n_pictures} pictures, as output_type='latent' gives")
        sources = generators(seed, call.n_pictures)
        for source in sources:  # the noise that the picture was drawn from would be a part of the answer
            source.manual_seed(source.initial_seed() ^ _OTHER_NOISE)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=source) for source in sources]).to(latents)
        self._refuse_absent(call)
        with self.attached(), losses_of(self, latents, noise, branch, wanted) as found, self._counting(call):
            self.pipeline(**call.given)
        return torch.stack([found[index] for index in wanted])

    @contextmanager
    def _counting(self, call: Call) -> Iterator[None]:
        """Say steps, branches and sizes while the pipeline runs a call."""
        self.current_sides = call.sides(self.pipeline, self._row)
        try:
            with Passes(self, call.of_step, call.n_pictures).counted(self.denoiser):
                yield
        finally:
            self.current_sides = None

    def _hooked(self) -> dict[str, Place]:
        return {name: place for name, place in self._places.items() if is_hooked(self.hook_dict[name])}

    @contextmanager
    def attached(self) -> Iterator["HookedDiffusion"]:
        """Have the stock modules call the hooks that are on, whoever runs them, for the time of a ``with`` block.

        A call of the model does so itself. This is for passes of :attr:`denoiser` of your own, with gradients for
        example; hooks then see all rows, ``hook.branch`` is None, and ``hook.step`` what :meth:`step` says.

        Raises:
            VitLensError: The denoiser cannot be hooked as it is: it is compiled, skips blocks, or runs in pieces.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> given = dict(timestep=torch.tensor(500), encoder_hidden_states=torch.randn(1, 9, 128), return_dict=False)
        >>> kept = []
        >>> with sd.hooks([("mid.0.hook_update", lambda x, hook: kept.append(x))]), sd.attached():
        ...     noise = sd.denoiser(torch.randn(1, 8, 8, 8), **given)[0]
        >>> gradient, = torch.autograd.grad(noise.square().sum(), kept)
        >>> gradient.shape, sd.hooked_names()
        (torch.Size([1, 16, 112]), [])
        """
        if self._is_attached:
            raise VitLensError("hooks are attached already; a call of the model attaches them by itself")
        hooked = self._hooked()
        if hooked:
            check_wirable(self.denoiser)
        self._is_attached = True
        try:
            with attach(self.denoiser, hooked, self._fire) if hooked else nullcontext():
                yield self
        finally:
            self._is_attached = False

    def _fire(self, name: str, value: Tensor) -> Tensor:
        """Call a hook point for each branch in the rows; return the same tensor where nothing was changed."""
        point, branches = self.hook_dict[name], self.row_branches
        try:
            if len(branches) < 2:
                self.current_branch = branches[0] if branches else None
                return point(value)
            pieces, made = value.chunk(len(branches)), []
            for branch, piece in zip(branches, pieces, strict=True):
                self.current_branch = branch
                given = piece.clone()  # a view would keep the rows of the other branch
                new = point(given)
                made.append(piece if new is given else new)
            return value if all(new is old for new, old in zip(made, pieces, strict=True)) else torch.cat(made)
        finally:
            self.current_branch = None

    # ---- caches

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompts: str | Sequence[str] | None,
        *,
        steps: int | None = None,
        at_steps: Sequence[int] | None = None,
        names_filter: Name | Address | Sequence[str | Address] | None = None,
        branch: Literal["cond", "uncond", "both"] = "cond",
        device: str | torch.device | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Draw pictures and keep activations; what would not fit into memory is refused before anything runs.

        Args:
            prompts: As for :meth:`forward`.
            steps: As for :meth:`forward`.
            at_steps: The indices of the steps to keep; None keeps all.
            names_filter: A name or address, a list of them, or a predicate on names; None keeps every point. Of an
                address what it names is kept, such as one token at one step (``D5.img.mlp@7~3``).
            branch: Which branch of guidance to keep; "both" returns a dict of two caches by branch.
            device: Where activations are kept; None leaves them where they are.
            seed: As for :meth:`forward`.
            **options: As for :meth:`forward`.

        Returns:
            What :meth:`forward` returns, and a :class:`BranchCache`: ``cache[name]`` is [step batch pos ...], and
            ``cache[address]`` what the address names.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            UnknownSiteError: An address is of nothing that the model or this run has.
            VitLensError: There is no such branch or step in this run, what is kept needs more memory than is free, or
                an argument is wrong.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> images, cache = sd.run_with_cache("a red star", at_steps=[0, 7], names_filter="down.1.0.hook_update")
        >>> cache["down.1.0.hook_update"].shape, cache
        (torch.Size([2, 1, 16, 112]), BranchCache(1 activations; steps 0, 7 at sigma 0.4137))
        >>> sd.run_with_cache("a red star", steps=4, at_steps=[5])
        Traceback (most recent call last):
        vit_lens.errors.VitLensError: at_steps=[5]: a run of steps=4 has the steps 0 to 3
        """
        call = self._call(prompts, steps, seed, options)
        aims, wanted = self._kept(names_filter), self._checked_branches(branch, call)
        names = [aim.key for aim in aims]
        keepers = {each: Keeper(self, names, device=device, at_steps=at_steps) for each in wanted}
        chosen = self._checked_steps(at_steps, call)
        for aim in aims:
            self._refuse_step(aim, call)
        if late := [str(aim.address) for aim in aims if aim.step is not None and aim.step not in chosen]:
            raise VitLensError(f"{late[0]} is of a step that at_steps={at_steps} leaves out")
        need = self._bytes(aims, chosen, call) * len(wanted)
        self._check_memory(need, self.device if device is None else as_device(device), names, call, len(chosen))
        hooks = []
        for each, keeper in keepers.items():
            named = [(aim.key, as_named(keep, aim)) for aim, (_, keep) in zip(aims, keeper.hooks()[0], strict=True)]
            gated = self._of_branch(each, named)
            hooks += [
                (aim.point, AimedGuard(keep, aim, "fwd", self)) for aim, (_, keep) in zip(aims, gated, strict=True)
            ]
        with self.hooks(hooks):
            out = self(prompts, steps=steps, seed=seed, **options)
        found = {each: (keeper.cache, keeper.result(Kept)) for each, keeper in keepers.items()}
        caches = {
            each: BranchCache(kept, cache.steps, self, each) if isinstance(cache, SteppedCache) else cache
            for each, (kept, cache) in found.items()
        }
        return out, caches if branch == "both" else caches[branch]

    def cache_cost(
        self,
        prompts: str | Sequence[str] | None,
        *,
        steps: int | None = None,
        at_steps: Sequence[int] | None = None,
        names_filter: Name | Address | Sequence[str | Address] | None = None,
        branch: Literal["cond", "uncond", "both"] = "cond",
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> int:
        """Return how many bytes :meth:`run_with_cache` would keep, without running the pipeline.

        A denoiser of the same configuration runs on the meta device, which has shapes and no memory.

        Args:
            prompts: As for :meth:`run_with_cache`.
            steps: As for :meth:`run_with_cache`.
            at_steps: As for :meth:`run_with_cache`.
            names_filter: As for :meth:`run_with_cache`.
            branch: As for :meth:`run_with_cache`.
            seed: As for :meth:`run_with_cache`.
            **options: As for :meth:`run_with_cache`.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            VitLensError: There is no such branch or step in this run, or an argument is wrong.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> sd.cache_cost("a red star"), sd.cache_cost("a red star", names_filter="mid.0.hook_update", at_steps=[0])
        (..., 7168)
        """
        call = self._call(prompts, steps, seed, options)
        aims, chosen = self._kept(names_filter), self._checked_steps(at_steps, call)
        for aim in aims:
            self._refuse_step(aim, call)
        return self._bytes(aims, chosen, call) * len(self._checked_branches(branch, call))

    def get_caching_hooks(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        names_filter: Name | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        branch: Literal["cond", "uncond"] = "cond",
    ) -> tuple[dict[str, Tensor], list, list]:
        """Return a dict and the hooks that fill it, ``<name>~<step>``, in one branch of guidance.

        Args:
            names_filter: A name, a list of names, or a predicate on names; None keeps every point.
            incl_bwd: Whether there are hooks for gradients as well; within :meth:`attached` alone.
            device: Where activations are kept; None leaves them where they are.
            remove_batch_dim: Whether the batch axis is dropped; for one picture only.
            cache: The dict to fill; None makes one.
            branch: The branch of guidance; a pass outside of a pipeline's run has none, and is kept.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            VitLensError: There is no such branch.
        """
        if branch not in _BRANCHES:
            raise VitLensError(f"branch={branch!r}; expected 'cond' or 'uncond'")
        kept, fwd, bwd = super().get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        return kept, self._of_branch(branch, fwd), bwd

    def _of_branch(self, branch: str, hooks: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Return hooks that fire in one branch alone, and where there are no branches; on points of a splice, too."""

        def gated(keep: Any) -> Any:
            def fire(tensor: Tensor, hook: Any) -> Any:
                return keep(tensor, hook=hook) if self.current_branch in (branch, None) else None

            fire.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]
            return fire

        return [(name, gated(keep)) for name, keep in hooks]

    def _checked_branches(self, branch: Any, call: Call) -> tuple[str, ...]:
        if branch not in (*_BRANCHES, "both"):
            raise VitLensError(f"branch={branch!r}; expected 'cond', 'uncond' or 'both'")
        if branch != "cond" and "uncond" not in call.branches:
            word = "guidance_scale=" if self._row.together else "negative_prompt= and true_cfg_scale="
            raise VitLensError(f"branch={branch!r}: this run has no unconditional branch. It comes with {word} above 1")
        return _BRANCHES if branch == "both" else (branch,)

    def _checked_steps(self, at_steps: Sequence[int] | None, call: Call) -> list[int]:
        """Return the steps that are kept."""
        steps, n = call.every["num_inference_steps"], self._steps(call)
        chosen = range(n) if at_steps is None else [as_index(each) for each in at_steps]
        if absent := [each for each in chosen if each is None or not 0 <= each < n]:
            raise VitLensError(f"at_steps={absent}: a run of steps={steps} has the steps 0 to {n - 1}")
        return list(dict.fromkeys(each for each in chosen if each is not None))

    def _check_memory(self, need: int, where: torch.device, names: list[str], call: Call, n: int) -> None:
        free = free_memory(where) if where.type in _MEMORY_KINDS else need
        if need > free:
            advice = "" if where.type == "cpu" else ', device="cpu", where there may be more'
            raise VitLensError(
                f"a cache of {len(names)} hook points in {n} steps of {call.n_pictures} pictures holds {_gb(need)}, "
                f"and {where} has {_gb(free)} free; choose points with names_filter=, steps with at_steps={advice}, or "
                "fewer prompts. model.cache_cost(...) says what a choice holds"
            )


def _gb(n: int) -> str:
    return f"{n / 1e9:.3g} GB"
