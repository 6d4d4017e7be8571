"""Codes of languages, however they are written."""

from __future__ import annotations

_PAIRS = """
    afr:af aka:ak amh:am ara:ar arb:ar asm:as aze:az azj:az bak:ba bam:bm bel:be ben:bn bod:bo bos:bs bre:br bul:bg
    cat:ca ces:cs cmn:zh cym:cy dan:da deu:de dzo:dz ekk:et ell:el eng:en epo:eo est:et eus:eu fao:fo fas:fa fin:fi
    fra:fr fry:fy ful:ff gaz:om gla:gd gle:ga glg:gl grn:gn guj:gu hat:ht hau:ha heb:he hin:hi hrv:hr hun:hu hye:hy
    ibo:ig ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khk:mn khm:km kin:rw kir:ky kmr:ku kor:ko kur:ku
    lao:lo lat:la lav:lv lin:ln lit:lt ltz:lb lug:lg lvs:lv mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms
    mya:my nep:ne nld:nl nno:nn nob:nb nor:no npi:ne nya:ny oci:oc ori:or orm:om ory:or pan:pa pbt:ps pes:fa plt:mg
    pol:pl por:pt pus:ps que:qu quy:qu ron:ro run:rn rus:ru sin:si slk:sk slv:sl sme:se sna:sn snd:sd som:so sot:st
    spa:es sqi:sq srp:sr sun:su swa:sw swe:sv swh:sw tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti tsn:tn tso:ts
    tuk:tk tur:tr uig:ug ukr:uk urd:ur uzb:uz uzn:uz vie:vi wol:wo wuu:zh xho:xh ydd:yi yid:yi yor:yo yue:zh zho:zh
    zsm:ms zul:zu
"""
_THREE_LETTERS = dict(pair.split(":") for pair in _PAIRS.split())
"""ISO 639-3 code, as FLORES and Glottolog have them, to ISO 639-1, where there is one."""


def two_letters(language: str) -> str:
    """ISO 639-1 code of `zh-Hant`, `deu_Latn`, `jpn` or `pt_BR`; what is not known goes back as its first part."""
    first = language.replace("_", "-").partition("-")[0].lower()
    return _THREE_LETTERS.get(first, first)
