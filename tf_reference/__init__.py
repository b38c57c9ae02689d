"""What the original PtychoPINN computes, as one function per contract: NumPy arrays in, NumPy arrays out.

The oracle of the parity tests and of the memory benchmark; nothing else imports it. See FROZEN.md.
"""

from __future__ import annotations

from tf_reference import (
    _channels,
    _container,
    _coordinates,
    _extraction,
    _losses,
    _merging,
    _optics,
    _padding,
    _stitching,
    _translation,
)
from tf_reference._arrays import gradient, on_arrays
from tf_reference._container import EagerPtychoDataContainer, PtychoDataContainer, load
from tf_reference._coordinates import (
    extract_coords,
    get_bigN,
    get_padded_size,
    get_padding_size,
    get_relative_coords,
)
from tf_reference._grouping import generate_grouped_data, get_neighbor_indices, group_indices
from tf_reference._metrics import (
    FSC,
    FrcCutoffs,
    center_crop,
    eval_reconstruction,
    fit_and_remove_plane,
    frc_cutoffs,
    highpass2d,
    lowpass2d,
    mae,
    ms_ssim,
    mse,
    psnr,
    trim,
)
from tf_reference._network import Network, create_network
from tf_reference._object_patches import get_image_patches
from tf_reference._optics import (
    get_default_probe,
    get_probe_mask_real,
    get_squared_distance,
    lowpass_g,
    mk_lines_img,
    set_probe,
)
from tf_reference._registration import (
    align_for_evaluation,
    apply_shift_and_crop,
    center_crop_border,
    find_translation_offset,
    fourier_shift,
    get_scan_area_bbox,
    register_and_align,
)
from tf_reference._scaling import calculate_intensity_scale, count_photons, normalize_data, scale_nphotons
from tf_reference._training import CompiledModel, Prediction, create_compiled_model

__all__ = [
    "FSC",
    "CompiledModel",
    "EagerPtychoDataContainer",
    "FrcCutoffs",
    "Network",
    "Prediction",
    "PtychoDataContainer",
    "align_for_evaluation",
    "apply_shift_and_crop",
    "calculate_intensity_scale",
    "center_channels",
    "center_crop",
    "center_crop_border",
    "center_reassembly_offsets",
    "channel_to_flat",
    "channel_to_patches",
    "combine_complex",
    "complex_gaussian_filter2d",
    "complex_mae",
    "count_photons",
    "create_compiled_model",
    "create_network",
    "diffract_obj",
    "dummy_phi",
    "eval_reconstruction",
    "extract_coords",
    "extract_nested_patches",
    "extract_outer",
    "extract_patches",
    "extract_patches_position",
    "find_translation_offset",
    "fit_and_remove_plane",
    "flat_to_channel",
    "flatten_offsets",
    "fourier_shift",
    "frc_cutoffs",
    "fromgrid",
    "gaussian_filter2d",
    "generate_grouped_data",
    "get_bigN",
    "get_default_probe",
    "get_image_patches",
    "get_mask",
    "get_neighbor_indices",
    "get_padded_size",
    "get_padding_size",
    "get_probe_mask_real",
    "get_relative_coords",
    "get_scan_area_bbox",
    "get_squared_distance",
    "gradient",
    "gram_matrix",
    "grid_to_channel",
    "group_indices",
    "highpass2d",
    "illuminate_and_diffract",
    "load",
    "lowpass2d",
    "lowpass_g",
    "mae",
    "masked_mae",
    "meanSquaredLoss",
    "mean_absolute_error",
    "mk_centermask",
    "mk_lines_img",
    "mk_norm",
    "ms_ssim",
    "mse",
    "negloglik",
    "normalize_data",
    "observe_amplitude",
    "pad",
    "pad_and_diffract",
    "pad_obj",
    "pad_patches",
    "pad_reconstruction",
    "prepare_inputs",
    "prepare_outputs",
    "probe_illumination",
    "projective_warp_xla",
    "psnr",
    "realspace_loss",
    "reassemble_patches",
    "reassemble_patches_position_real",
    "reassemble_patches_real",
    "reassemble_position",
    "reassemble_whole_object",
    "register_and_align",
    "scale_nphotons",
    "separate_amp_phase",
    "set_probe",
    "shift_and_sum",
    "stitch_patches",
    "togrid",
    "total_variation",
    "translate",
    "trim",
    "trim_reconstruction",
]

center_channels = on_arrays(_channels.center_channels)
center_reassembly_offsets = on_arrays(_coordinates.center_reassembly_offsets)
channel_to_flat = on_arrays(_channels.channel_to_flat)
channel_to_patches = on_arrays(_channels.channel_to_patches)
combine_complex = on_arrays(_channels.combine_complex)
complex_gaussian_filter2d = on_arrays(_optics.complex_gaussian_filter2d)
complex_mae = on_arrays(_losses.complex_mae)
diffract_obj = on_arrays(_optics.diffract_obj)
dummy_phi = on_arrays(_optics.dummy_phi)
extract_nested_patches = on_arrays(_extraction.extract_nested_patches)
extract_outer = on_arrays(_extraction.extract_outer)
extract_patches = on_arrays(_extraction.extract_patches)
extract_patches_position = on_arrays(_extraction.extract_patches_position)
flat_to_channel = on_arrays(_channels.flat_to_channel)
flatten_offsets = on_arrays(_channels.flatten_offsets)
fromgrid = on_arrays(_channels.fromgrid)
gaussian_filter2d = on_arrays(_optics.gaussian_filter2d)
get_mask = on_arrays(_padding.get_mask)
gram_matrix = on_arrays(_losses.gram_matrix)
grid_to_channel = on_arrays(_channels.grid_to_channel)
illuminate_and_diffract = on_arrays(_optics.illuminate_and_diffract)
masked_mae = on_arrays(_losses.masked_mae)
meanSquaredLoss = on_arrays(_losses.meanSquaredLoss)
mean_absolute_error = on_arrays(_losses.mean_absolute_error)
mk_centermask = on_arrays(_padding.mk_centermask)
mk_norm = on_arrays(_merging.mk_norm)
negloglik = on_arrays(_losses.negloglik)
observe_amplitude = on_arrays(_optics.observe_amplitude)
pad = on_arrays(_padding.pad)
pad_and_diffract = on_arrays(_optics.pad_and_diffract)
pad_obj = on_arrays(_padding.pad_obj)
pad_patches = on_arrays(_padding.pad_patches)
pad_reconstruction = on_arrays(_padding.pad_reconstruction)
prepare_inputs = on_arrays(_container.prepare_inputs)
prepare_outputs = on_arrays(_container.prepare_outputs)
probe_illumination = on_arrays(_optics.probe_illumination)
projective_warp_xla = on_arrays(_translation.projective_warp_xla)
realspace_loss = on_arrays(_losses.realspace_loss)
reassemble_patches = on_arrays(_merging.reassemble_patches)
reassemble_patches_position_real = on_arrays(_merging.reassemble_patches_position_real)
reassemble_patches_real = on_arrays(_merging.reassemble_patches_real)
reassemble_position = on_arrays(_stitching.reassemble_position)
reassemble_whole_object = on_arrays(_stitching.reassemble_whole_object)
separate_amp_phase = on_arrays(_channels.separate_amp_phase)
shift_and_sum = on_arrays(_stitching.shift_and_sum)
stitch_patches = on_arrays(_stitching.stitch_patches)
togrid = on_arrays(_channels.togrid)
total_variation = on_arrays(_losses.total_variation)
translate = on_arrays(_translation.translate)
trim_reconstruction = on_arrays(_padding.trim_reconstruction)
