/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads. XE_DRM_H is the path of the kernel's own xe_drm.h, so the
 * structs are exactly those of the kernel under test. The request numbers are
 * macros that bindgen does not evaluate; a constant of C makes it.
 */
#include XE_DRM_H

#define REQUEST(name) static const unsigned long IOCTL_##name = DRM_IOCTL_##name

REQUEST(VERSION);
REQUEST(GEM_CLOSE);
REQUEST(SYNCOBJ_CREATE);
REQUEST(SYNCOBJ_DESTROY);
REQUEST(XE_DEVICE_QUERY);
REQUEST(XE_GEM_CREATE);
REQUEST(XE_GEM_MMAP_OFFSET);
REQUEST(XE_VM_CREATE);
REQUEST(XE_VM_DESTROY);
REQUEST(XE_VM_BIND);
REQUEST(XE_EXEC_QUEUE_CREATE);
REQUEST(XE_EXEC_QUEUE_DESTROY);
REQUEST(XE_EXEC_QUEUE_GET_PROPERTY);
REQUEST(XE_EXEC);
REQUEST(XE_WAIT_USER_FENCE);
REQUEST(XE_MADVISE);
REQUEST(XE_VM_QUERY_MEM_RANGE_ATTRS);
REQUEST(XE_EXEC_QUEUE_SET_PROPERTY);
REQUEST(XE_VM_GET_PROPERTY);
