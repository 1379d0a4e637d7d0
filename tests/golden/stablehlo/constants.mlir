module @constants {
  func.func public @main() -> (tensor<2x2xf64>, tensor<2x2xf64>, tensor<f64>, tensor<0x2xf64>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<f32>, tensor<0x2xf32>, tensor<2x2xbf16>, tensor<2x2xbf16>, tensor<bf16>, tensor<0x2xbf16>, tensor<2x2xf16>, tensor<2x2xf16>, tensor<f16>, tensor<0x2xf16>, tensor<2x2xi32>, tensor<2x2xi32>, tensor<i32>, tensor<0x2xi32>, tensor<2x2xui32>, tensor<2x2xui32>, tensor<ui32>, tensor<0x2xui32>, tensor<2x2xi64>, tensor<2x2xi64>, tensor<i64>, tensor<0x2xi64>, tensor<2x2xui8>, tensor<2x2xui8>, tensor<ui8>, tensor<0x2xui8>, tensor<2x2xi1>, tensor<2x2xi1>, tensor<i1>, tensor<0x2xi1>, tensor<4xf32>, tensor<2xi64>, tensor<i64>, tensor<i32>, tensor<ui32>, tensor<bf16>, tensor<f16>) {
    %0 = stablehlo.constant dense<"0x0000000000000000000000000000F03F00000000000004400000000000005940"> : tensor<2x2xf64>
    %1 = stablehlo.constant dense<0x400A000000000000> : tensor<2x2xf64>
    %2 = stablehlo.constant dense<0x3FF0000000000000> : tensor<f64>
    %3 = stablehlo.constant dense<0x0000000000000000> : tensor<0x2xf64>
    %4 = stablehlo.constant dense<"0x000000000000803F000020400000C842"> : tensor<2x2xf32>
    %5 = stablehlo.constant dense<0x40500000> : tensor<2x2xf32>
    %6 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %7 = stablehlo.constant dense<0x00000000> : tensor<0x2xf32>
    %8 = stablehlo.constant dense<"0x0000803F2040C842"> : tensor<2x2xbf16>
    %9 = stablehlo.constant dense<0x4050> : tensor<2x2xbf16>
    %10 = stablehlo.constant dense<0x3F80> : tensor<bf16>
    %11 = stablehlo.constant dense<0x0000> : tensor<0x2xbf16>
    %12 = stablehlo.constant dense<"0x0000003C00414056"> : tensor<2x2xf16>
    %13 = stablehlo.constant dense<0x4280> : tensor<2x2xf16>
    %14 = stablehlo.constant dense<0x3C00> : tensor<f16>
    %15 = stablehlo.constant dense<0x0000> : tensor<0x2xf16>
    %16 = stablehlo.constant dense<"0x00000000010000000200000064000000"> : tensor<2x2xi32>
    %17 = stablehlo.constant dense<3> : tensor<2x2xi32>
    %18 = stablehlo.constant dense<1> : tensor<i32>
    %19 = stablehlo.constant dense<0> : tensor<0x2xi32>
    %20 = stablehlo.constant dense<"0x00000000010000000200000064000000"> : tensor<2x2xui32>
    %21 = stablehlo.constant dense<3> : tensor<2x2xui32>
    %22 = stablehlo.constant dense<1> : tensor<ui32>
    %23 = stablehlo.constant dense<0> : tensor<0x2xui32>
    %24 = stablehlo.constant dense<"0x0000000000000000010000000000000002000000000000006400000000000000"> : tensor<2x2xi64>
    %25 = stablehlo.constant dense<3> : tensor<2x2xi64>
    %26 = stablehlo.constant dense<1> : tensor<i64>
    %27 = stablehlo.constant dense<0> : tensor<0x2xi64>
    %28 = stablehlo.constant dense<"0x00010264"> : tensor<2x2xui8>
    %29 = stablehlo.constant dense<3> : tensor<2x2xui8>
    %30 = stablehlo.constant dense<1> : tensor<ui8>
    %31 = stablehlo.constant dense<0> : tensor<0x2xui8>
    %32 = stablehlo.constant dense<[[false, true], [true, true]]> : tensor<2x2xi1>
    %33 = stablehlo.constant dense<true> : tensor<2x2xi1>
    %34 = stablehlo.constant dense<true> : tensor<i1>
    %35 = stablehlo.constant dense<false> : tensor<0x2xi1>
    %36 = stablehlo.constant dense<"0x0000C07F0000807F0000008000008000"> : tensor<4xf32>
    %37 = stablehlo.constant dense<"0x0000000000000080FFFFFFFFFFFFFF7F"> : tensor<2xi64>
    %38 = stablehlo.constant dense<-9223372036854775808> : tensor<i64>
    %39 = stablehlo.constant dense<-2147483648> : tensor<i32>
    %40 = stablehlo.constant dense<4294967295> : tensor<ui32>
    %41 = stablehlo.constant dense<0xFF80> : tensor<bf16>
    %42 = stablehlo.constant dense<0x7BFF> : tensor<f16>
    // f64.dense, f64.splat, f64.scalar, f64.empty, f32.dense, f32.splat, f32.scalar, f32.empty, bf16.dense, bf16.splat, bf16.scalar, bf16.empty, f16.dense, f16.splat, f16.scalar, f16.empty, i32.dense, i32.splat, i32.scalar, i32.empty, u32.dense, u32.splat, u32.scalar, u32.empty, i64.dense, i64.splat, i64.scalar, i64.empty, u8.dense, u8.splat, u8.scalar, u8.empty, bool.dense, bool.splat, bool.scalar, bool.empty, special, extremes.i64, least.i64, least.i32, most.u32, least.bf16, most.f16
    return %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42 : tensor<2x2xf64>, tensor<2x2xf64>, tensor<f64>, tensor<0x2xf64>, tensor<2x2xf32>, tensor<2x2xf32>, tensor<f32>, tensor<0x2xf32>, tensor<2x2xbf16>, tensor<2x2xbf16>, tensor<bf16>, tensor<0x2xbf16>, tensor<2x2xf16>, tensor<2x2xf16>, tensor<f16>, tensor<0x2xf16>, tensor<2x2xi32>, tensor<2x2xi32>, tensor<i32>, tensor<0x2xi32>, tensor<2x2xui32>, tensor<2x2xui32>, tensor<ui32>, tensor<0x2xui32>, tensor<2x2xi64>, tensor<2x2xi64>, tensor<i64>, tensor<0x2xi64>, tensor<2x2xui8>, tensor<2x2xui8>, tensor<ui8>, tensor<0x2xui8>, tensor<2x2xi1>, tensor<2x2xi1>, tensor<i1>, tensor<0x2xi1>, tensor<4xf32>, tensor<2xi64>, tensor<i64>, tensor<i32>, tensor<ui32>, tensor<bf16>, tensor<f16>
  }
}
